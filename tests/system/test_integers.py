"""Seeds and counts: any integer, NumPy's and torch's among them; no float and no bool."""

import numpy as np
import pytest
import torch
from sampling_toy import Toy

import fastgen
from fastgen import random
from fastgen.models import MAF, NSF, RBM, Glow, Ising, RealNVP, Transformer
from fastgen.ops import attention, ising, rbm_gibbs, sample_logits

IDS = torch.arange(3)
SPINS = random.bernoulli(0.5, 1, IDS, n=16).to(torch.int8).mul(2).sub(1).view(3, 4, 4)
WEIGHT = random.normal(2, torch.arange(5), n=4)
STATES = torch.zeros(3, 5)


def language_model():
    torch.manual_seed(0)
    return Transformer(8, layout="gpt2", layers=1, heads=1, hidden=16, mlp=16, context=32).eval()


MODEL = language_model()
CALLS = {
    "bits": (lambda **a: random.bits(a.pop("seed"), IDS, **a), {"seed": 3, "step": 2, "n": 5, "stream": 1}),
    "bernoulli": (lambda **a: random.bernoulli(0.3, a.pop("seed"), IDS, **a), {"seed": 3, "step": 2, "n": 5}),
    "ising": (lambda **a: ising(SPINS, 0.4, **a).spins, {"sweeps": 2, "seed": 3, "first_step": 1}),
    "rbm_gibbs": (
        lambda **a: rbm_gibbs(STATES, None, WEIGHT, torch.zeros(5), torch.zeros(4), **a).v,
        {"half_steps": 4, "seed": 3, "first_step": 2},
    ),
    "sample_logits": (lambda **a: sample_logits(torch.zeros(3, 9), **a).token, {"seed": 3, "step": 1}),
    "attention": (
        lambda **a: attention(WEIGHT[None, None], *[WEIGHT[None, None]] * 2, dropout_p=0.5, **a),
        {"window": 2, "seed": 1},
    ),
    "sample": (
        lambda **a: fastgen.sample(Toy(), a.pop("n"), progress=False, **a),
        {"n": 5, "seed": 3, "batch_size": 2, "first": 4, "shard_size": 3},
    ),
    "Ising.sample": (lambda **a: Ising(4, 4).sample(IDS, **a), {"seed": 3, "sweeps": 2}),
    "RBM.sample": (lambda **a: RBM(5, 4).sample(IDS, **a), {"seed": 3, "steps": 2}),
    "RBM.log_partition": (
        lambda **a: torch.tensor(RBM(5, 4).log_partition(**a)), {"seed": 3, "chains": 4, "steps": 2}
    ),
    "generate": (
        lambda **a: torch.tensor(MODEL.generate([[1, 2]], **a)[0].tokens),
        {"seed": 3, "max_new_tokens": 4, "n": 1, "batch_size": 2, "pass_tokens": 3, "cache_positions": 64},
    ),
    "beams": (
        lambda **a: torch.tensor(MODEL.generate([[1, 2]], **a)[0].tokens), {"beams": 2, "max_new_tokens": 3}
    ),
}  # fmt: skip
EACH = [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
@pytest.mark.parametrize("name", CALLS)
def test_integers_of_every_kind_are_integers(name, kind):
    run, arguments = CALLS[name]
    other = run(**{argument: kind(value) for argument, value in arguments.items()})
    assert torch.equal(other, run(**arguments))


@pytest.mark.parametrize("wrong", [2.0, True, np.float64(2), np.bool_(True), torch.tensor(True), "2"])
@pytest.mark.parametrize("name, argument", EACH)
def test_other_values_are_refused_by_name(name, argument, wrong):
    run, arguments = CALLS[name]
    with pytest.raises(TypeError, match=f"^{argument} is .*, wanted an int"):
        run(**arguments | {argument: wrong})


@pytest.mark.parametrize(
    "make, config",
    [
        (RealNVP, {"shape": 4, "steps": 2, "hidden": 8}),
        (MAF, {"shape": 4, "steps": 2, "hidden": 8, "blocks": 1}),
        (NSF, {"shape": 4, "steps": 2, "hidden": 8, "blocks": 1, "bins": 4}),
        (Glow, {"shape": (1, 4, 4), "scales": 1, "steps": 2, "hidden": 8}),
        (Ising, {"height": 4, "width": 6}),
    ],
)
def test_sizes_of_models_may_come_from_numpy(make, config):
    given = {
        name: tuple(map(np.int64, v)) if isinstance(v, tuple) else np.int64(v) for name, v in config.items()
    }
    model = make(**given)
    assert model.config == make(**config).config
    assert all(type(value) is not np.int64 for value in model.config.values())
    samples = model.sample(IDS, seed=np.int64(3))
    assert len(samples) == 3


def test_a_tensor_of_several_numbers_is_no_integer():
    with pytest.raises(TypeError, match="seed is tensor"):
        random.normal(torch.tensor([1, 2]), IDS, n=4)


def test_tokens_from_numpy_are_a_prompt():
    wanted = MODEL.generate([[1, 2]], max_new_tokens=4)[0].tokens
    for prompt in (np.array([1, 2]), [np.int64(1), np.int64(2)], np.array([[1, 2]])):
        assert MODEL.generate(prompt, max_new_tokens=4)[0].tokens == wanted

"""An accelerated model of transformers packs its weights, and packs them again when they have changed."""

import copy
import pickle

import numpy as np
import pytest
import torch
from small_transformers import SIZES, generate, llama, prompts, spread, transformers, twins

from fastgen import accelerate


@pytest.fixture
def llamas():
    return twins()


def fused_step(mine, new):
    """A fused optimizer lands on the new values; it counts no version."""
    optimizer = torch.optim.SGD(list(mine), lr=1.0, fused=True)
    for parameter, value in zip(mine, new, strict=True):
        parameter.grad = parameter.detach() - value
    optimizer.step()


def through_numpy(mine, new):
    for parameter, value in zip(mine, new, strict=True):
        np.copyto(parameter.numpy(force=True), value)


def assign_twice(mine, new):
    """The second assignment may get the memory that the first one gave back."""
    for parameter, value in zip(mine, new, strict=True):
        parameter.data = parameter.data * 2
        parameter.data = value.clone()


CHANGES = {
    "in place": lambda mine, new: [m.copy_(v) for m, v in zip(mine, new, strict=True)],
    "through data": lambda mine, new: [m.data.copy_(v) for m, v in zip(mine, new, strict=True)],
    "assigned to data": assign_twice,
    "through NumPy": lambda mine, new: [
        np.copyto(m.numpy(force=True), v) for m, v in zip(mine, new, strict=True)
    ],
    "by a fused optimizer": fused_step,
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("one", [False, True], ids=["all", "one"])
def test_weights_that_change_are_noticed(llamas, how, one):
    plain, fast = llamas
    before = generate(fast, **prompts())
    other = spread(llama(), seed=9)
    if one:  # matrix alone is another, and the sum of its numbers is not
        other.load_state_dict(plain.state_dict())
        with torch.no_grad():
            other.model.layers[1].mlp.up_proj.weight.copy_(other.model.layers[1].mlp.up_proj.weight.flip(0))
    changed = [
        (mine, new.detach())
        for mine, new in zip(fast.parameters(), other.parameters(), strict=True)
        if not torch.equal(mine, new)
    ]
    with torch.no_grad():
        CHANGES[how](*(list(side) for side in zip(*changed, strict=True)))
    got = generate(fast, **prompts())
    assert torch.equal(got, generate(other, **prompts())) and got.tolist() != before.tolist()
    assert torch.equal(generate(plain, **prompts()), before)  # the original is another model


@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_are_loaded_or_exchanged_are_noticed(llamas, assign):
    _, fast = llamas
    generate(fast, **prompts())
    other = spread(llama(), seed=9)
    fast.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(generate(fast, **prompts()), generate(other, **prompts()))
    third = spread(llama(), seed=10)
    fast.model.layers[0], other.model.layers[0] = third.model.layers[0], third.model.layers[0]
    assert torch.equal(generate(fast, **prompts()), generate(other, **prompts()))


def test_a_row_written_through_data_is_noticed_once_it_is_told(llamas):
    _, fast = llamas
    generate(fast, **prompts())
    weight = fast.lm_head.weight
    weight.data[9] = 5 * weight.data[9]  # none of the numbers that are compared
    torch.autograd.graph.increment_version(weight)
    other = spread(llama(), seed=0)
    other.load_state_dict(fast.state_dict())
    assert torch.equal(generate(fast, **prompts()), generate(other, **prompts()))


def set_eps(model, eps):
    for part in model.modules():
        if hasattr(part, "variance_epsilon"):
            part.variance_epsilon = eps


def test_a_module_that_is_not_what_the_config_says_is_left_to_the_library(llamas):
    plain, fast = llamas
    before = generate(fast, **prompts())
    for model in (plain, fast):
        set_eps(model, 3.0)
    found = generate(fast, own="has the variance_epsilon 3.0, which its config makes 1e-06", **prompts())
    assert torch.equal(found, generate(plain, **prompts())) and found.tolist() != before.tolist()
    for model in (plain, fast):  # transformers reads it at construction alone, so now the two agree
        model.config.rms_norm_eps = 3.0
    assert torch.equal(generate(fast, **prompts()), found)
    set_eps(fast, 1e-6)
    fast.config.rms_norm_eps = 1e-6
    assert torch.equal(generate(fast, **prompts()), before)
    fast.model.layers[1].self_attn.scaling *= 2
    generate(fast, own="its model.layers.1.self_attn has the scaling", **prompts())


def test_an_activation_put_in_the_place_of_another_is_noticed(llamas):
    _, fast = llamas
    generate(fast, **prompts())
    fast.model.layers[0].mlp.act_fn = torch.nn.ReLU()
    generate(
        fast, own="its model.layers.0.mlp.act_fn is ReLU, which its config makes SiLUActivation", **prompts()
    )


def test_a_window_that_is_set_in_the_config_holds_from_the_next_call_on():
    plain = spread(transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=64)))
    fast, _ = accelerate(plain)
    before = generate(fast, **prompts())
    for model in (plain, fast):
        model.config.sliding_window = 4
    found = generate(fast, **prompts())
    assert torch.equal(found, generate(plain, **prompts())) and found.tolist() != before.tolist()


def test_nothing_is_packed_again_while_nothing_changes(llamas, monkeypatch):
    _, fast = llamas
    generate(fast, **prompts())
    monkeypatch.setattr("fastgen.integrations._language_models.build", lambda *_, **__: pytest.fail("packed"))
    generate(fast, **prompts())
    with torch.inference_mode():
        generate(fast, **prompts())
    fast.register_forward_hook(lambda *_: None)  # of the whole model, which generate does not call
    generate(fast, **prompts())


def test_copies_pickles_and_state_dicts_go_on_working(llamas, tmp_path):
    plain, fast = llamas
    wanted = generate(fast, **prompts())
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(generate(other, **prompts()), wanted)
    fast.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(generate(again, **prompts()), wanted)
    assert fast.state_dict().keys() == plain.state_dict().keys()


def test_bfloat16_weights_are_multiplied_in_float32():
    plain = spread(llama()).to(torch.bfloat16)
    fast, _ = accelerate(plain)
    assert torch.equal(generate(fast, **prompts()), generate(copy.deepcopy(plain).float(), **prompts()))

"""The op rbm_gibbs: its sums and its bits, whatever else is in the batch and wherever it runs."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from fastgen import native, use_backend
from fastgen.ops import rbm_gibbs
from fastgen.random import Stream, bits
from fastgen.reference import random as reference_random
from fastgen.reference import rbm_gibbs as reference
from fastgen.testing import fenced, with_threads

from .test_rbm_gibbs import HERE, ISAS, make

# The contract of native: the same bits as this model, written from its definition.


def fixed_order_sums(v, weight, bias):
    """Inputs in groups of four, (w0 + w1) + (w2 + w3), added one after the other to the bias, in float32."""
    inputs = np.pad(v.numpy().astype(np.float32), ((0, 0), (0, -v.shape[1] % 4)))
    weight = np.pad(weight.float().numpy(), ((0, -weight.shape[0] % 4), (0, 0)))
    total = np.tile(bias.numpy(), (len(inputs), 1))
    for i in range(0, len(weight), 4):
        on = inputs[:, i : i + 4, None] * weight[i : i + 4]
        total = total + ((on[:, 0] + on[:, 1]) + (on[:, 2] + on[:, 3]))
    return torch.from_numpy(total)


def model_half_step(inputs, weight, bias, beta, seed, step):
    """States and probabilities of one half step from chain numbers, seed and step."""
    field = fixed_order_sums(inputs, weight, bias) * beta
    e = reference_random.exp_nonpositive(-field.abs())
    one = torch.ones_like(e)
    words = bits(seed, torch.arange(len(inputs)), step=step, n=len(bias), stream=Stream.RBM_GIBBS).long()
    return reference.draw_states(field, words), torch.where(field >= 0, one, e) / (e + 1.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chains, visible, hidden", [(1, 1, 1), (3, 33, 70), (40, 130, 67), (600, 9, 4)])
def test_native_has_the_bits_of_the_fixed_order(isa, dtype, chains, visible, hidden):
    v, weight, v_bias, h_bias = make(chains, visible, hidden)
    weight = weight.to(dtype)
    with use_backend("native"), native.instruction_set(isa):
        end = rbm_gibbs(v, None, weight, v_bias, h_bias, beta=0.9, probabilities=True, seed=-5, first_step=6)
    h, h_mean = model_half_step(v, weight, h_bias, torch.tensor(0.9), -5, 6)
    v, v_mean = model_half_step(h, weight.T, v_bias, torch.tensor(0.9), -5, 7)
    assert torch.equal(end.h.bool(), h) and torch.equal(end.v.bool(), v)
    assert torch.equal(end.h_mean, h_mean) and torch.equal(end.v_mean, v_mean)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("chains", [7, 300])
def test_native_has_these_bits_however_many_units_are_on(isa, chains):
    """From chains with no unit on to chains with all on: of each word every number of groups occurs."""
    _, weight, v_bias, h_bias = make(chains, 100, 70)
    uniform = torch.rand(chains, 100, generator=torch.Generator().manual_seed(1))
    v = (uniform < torch.linspace(0, 1, chains)[:, None]).float()
    with use_backend("native"), native.instruction_set(isa):
        end = rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=1, probabilities=True, seed=3)
    h, h_mean = model_half_step(v, weight, h_bias, 1.0, 3, 0)
    assert torch.equal(end.h.bool(), h) and torch.equal(end.h_mean, h_mean)


@pytest.mark.parametrize("isa", ISAS)
def test_two_million_draws_are_those_of_the_definition(isa):
    """So many that some words fall where only the exact probability decides."""
    v, weight, _, h_bias = make(4096, 8, 512, scale=2.0)
    with use_backend("native"), native.instruction_set(isa):
        end = rbm_gibbs(v, None, weight, torch.zeros(8), h_bias, half_steps=1, seed=8)
    h, _ = model_half_step(v, weight, h_bias, 1.0, 8, 0)
    assert torch.equal(end.h.bool(), h)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("visible, hidden", [(6, 5), (784, 512), (64, 1000)])
def test_probabilities_lose_no_more_than_a_product_of_the_library(backend, visible, hidden):
    v, weight, v_bias, h_bias = make(16, visible, hidden, scale=0.3)
    arguments = {"half_steps": 1, "probabilities": True, "seed": 0}
    with use_backend("reference"):
        exact = rbm_gibbs(v, None, weight.double(), v_bias.double(), h_bias.double(), **arguments).h_mean
    with use_backend(backend):
        mean = rbm_gibbs(v, None, weight, v_bias, h_bias, **arguments).h_mean
    library = (torch.sigmoid(torch.addmm(h_bias, v.float(), weight)) - exact).abs().max()
    assert (mean - exact).abs().max() <= 4 * library + 2e-7


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("backend", [name for name in HERE if name != "reference"])
def test_every_implementation_draws_as_the_reference(backend, gaussian):
    v, weight, v_bias, h_bias = make(20, 50, 37)
    mask = torch.rand(20, 50, generator=torch.Generator().manual_seed(1)) < 0.2
    start = torch.randn(20, 50, generator=torch.Generator().manual_seed(2)) if gaussian else v
    ends = []
    for name in ("reference", backend):
        with use_backend(name):
            ends.append(
                rbm_gibbs(
                    start,
                    None,
                    weight,
                    v_bias,
                    h_bias,
                    half_steps=3,
                    probabilities=True,
                    clamp_mask=mask,
                    visible="gaussian" if gaussian else "bernoulli",
                    seed=2**63 + 1,
                    first_step=2**32 - 4,
                )
            )
    for expected, came in zip(*ends, strict=True):
        assert torch.allclose(expected.float(), came.float(), atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("chains, visible, hidden", [(1, 3, 2), (5, 33, 65), (40, 70, 31)])
def test_native_writes_every_element_and_nothing_else(isa, chains, visible, hidden, dtype):
    v, weight, v_bias, h_bias = make(chains, visible, hidden)
    mask, ids = torch.zeros(visible, dtype=torch.bool), torch.arange(chains)
    shapes = [(chains, visible), (chains, hidden)]
    with native.instruction_set(isa), ExitStack() as stack:
        start, ends = ([stack.enter_context(fenced(s, dtype)) for s in shapes] for _ in range(2))
        means = [stack.enter_context(fenced(shape, torch.float32)) for shape in shapes]
        start[0].copy_(v), start[1].zero_()
        model = (weight, v_bias, h_bias, torch.ones(chains), mask)
        rest = (2, False, 7, ids, 0, 19, 20)
        assert torch.ops.fastgen_native.rbm_gibbs(*start, *ends, *means, *model, *rest)
        expected = rbm_gibbs(v, None, weight, v_bias, h_bias, probabilities=True, seed=7)
        assert all(torch.equal(a, b) for a, b in zip((*ends, *means), expected, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("visible, hidden", [(1, 1), (3, 2), (33, 70), (130, 67), (64, 128), (17, 300)])
def test_weights_by_columns_give_the_bits_of_weights_by_rows(isa, dtype, visible, hidden):
    v, weight, v_bias, h_bias = make(9, visible, hidden)
    weight = weight.to(dtype)
    with native.instruction_set(isa), use_backend("native"):
        ends = [
            rbm_gibbs(v, None, w, v_bias, h_bias, half_steps=4, probabilities=True, seed=3)
            for w in (weight, weight.T.contiguous().T, weight.repeat_interleave(2, 1)[:, ::2])
        ]
    for end in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], end, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "dtype, value", [(torch.float32, 0.5), (torch.float32, float("nan")), (torch.uint8, 2), (torch.int8, -1)]
)
def test_native_finds_a_state_that_is_no_bit_wherever_it_is(isa, dtype, value):
    for name, units in (("v", 67), ("h", 50)):
        for place in (0, 31, units - 1):
            v, weight, v_bias, h_bias = make(40, 67, 50)
            given = {"v": v.to(dtype), "h": torch.ones(40, 50, dtype=dtype)}
            given[name][33, place] = value
            refused = pytest.raises(ValueError, match=f"^{name} holds .*, wanted 0 and 1$")
            with native.instruction_set(isa), use_backend("native"), refused:
                rbm_gibbs(**given, weight=weight, v_bias=v_bias, h_bias=h_bias, seed=1)


# Chain i has the same bits whatever else runs.


def run_native(v, weight, v_bias, h_bias, ids, threads=1, **arguments):
    with with_threads(threads), use_backend("native"):
        return rbm_gibbs(v, None, weight, v_bias, h_bias, sample_ids=ids, seed=9, **arguments)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chain_has_the_same_bits_alone_in_any_batch_and_with_any_threads(visible, dtype):
    v, weight, v_bias, h_bias = make(1100, 200, 150, scale=0.1)
    v, weight = (v.float() if visible == "gaussian" else v), weight.to(dtype)
    ids = torch.arange(1100) * 2**33 + 7
    arguments = {"half_steps": 4, "probabilities": True, "visible": visible}
    whole = run_native(v, weight, v_bias, h_bias, ids, **arguments)
    for threads in (1, 2, 3, 5):
        for rows in (slice(0, 1), slice(3, 9), slice(3, 10), slice(700, 957), slice(0, 600), slice(0, 1100)):
            part = run_native(v[rows], weight, v_bias, h_bias, ids[rows], threads, **arguments)
            for expected, came in zip(whole, part, strict=True):
                assert torch.equal(expected[rows], came), (threads, rows)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("chains", [1, 12, 300])
def test_instruction_sets_agree(isa, chains):
    v, weight, v_bias, h_bias = make(chains, 211, 150, scale=0.1)
    ids = torch.arange(chains)
    expected = run_native(v, weight, v_bias, h_bias, ids, half_steps=6, probabilities=True)
    with native.instruction_set(isa):
        came = run_native(v, weight, v_bias, h_bias, ids, half_steps=6, probabilities=True)
    assert all(torch.equal(a, b) for a, b in zip(expected, came, strict=True))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_implementation_gives_the_means_of_the_reference_in_either_format(dtype, backend):
    v, weight, v_bias, h_bias = make(64, 24, 16)
    states = []
    for name in ("reference", backend):
        with use_backend(name):
            states.append(rbm_gibbs(v, None, weight.to(dtype), v_bias, h_bias, seed=1, probabilities=True))
    wanted, found = states
    assert torch.allclose(found.h_mean, wanted.h_mean, rtol=0, atol=1e-6)
    assert (found.h == wanted.h).all(1).float().mean() > 0.95  # a sum may round to the other side of a draw

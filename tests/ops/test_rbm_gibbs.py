"""The op rbm_gibbs: its distribution, its sums, its bits, and what it refuses."""

import itertools
import subprocess
import sys
from contextlib import ExitStack, nullcontext

import numpy as np
import pytest
import torch
from scipy import stats

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.bench import peak_memory
from fastgen.ops import rbm_gibbs
from fastgen.ops._registry import OPS
from fastgen.random import Stream, bits, normal
from fastgen.reference import random as reference_random
from fastgen.reference import rbm_gibbs as reference
from fastgen.testing import FALSE_ALARM, chi_square, fenced, with_threads

ISAS = native.usable_isas()
HERE = [name for name in OPS["rbm_gibbs"].implementations if usable("rbm_gibbs", name, "cpu")]
FEWER = {"triton": 32}  # the interpreter is slow: so many times fewer chains


def make(chains, visible, hidden, seed=0, scale=0.5):
    """v, weight, v_bias, h_bias."""
    g = torch.Generator().manual_seed(seed)
    v = (torch.rand(chains, visible, generator=g) < 0.5).to(torch.uint8)
    weight = torch.randn(visible, hidden, generator=g) * scale
    return v, weight, torch.randn(visible, generator=g) * scale, torch.randn(hidden, generator=g) * scale


def states(units):
    return np.array(list(itertools.product((0, 1), repeat=units)), dtype=np.float64)


def conditional(field, outcomes):
    """P(outcome | field) for rows of fields and rows of states."""
    on = 1 / (1 + np.exp(-field[:, None, :]))
    return np.prod(np.where(outcomes[None] == 1, on, 1 - on), axis=-1)


def p_value(samples, probability):
    return chi_square(np.bincount(samples, minlength=len(probability)), probability)


def number(state):
    return (state.long() @ (1 << torch.arange(state.shape[1] - 1, -1, -1))).numpy()


def p_values_of_three_half_steps(chains, beta=0.8):
    """Chi-square of v and of h, drawn in half steps 1 and 2 from a fixed start, against exact enumeration."""
    v, weight, v_bias, h_bias = make(1, 6, 5, scale=1.0)
    end = rbm_gibbs(v.expand(chains, 6), None, weight, v_bias, h_bias, half_steps=3, beta=beta, seed=11)
    w, b, c = (x.double().numpy() for x in (weight, v_bias, h_bias))
    p_h = conditional(beta * (c + v.numpy() @ w), states(5))[0]
    p_v = p_h @ conditional(beta * (b + states(5) @ w.T), states(6))
    p_h = p_v @ conditional(beta * (c + states(6) @ w), states(5))
    return p_value(number(end.v), p_v), p_value(number(end.h), p_h)


@pytest.mark.parametrize("backend", HERE)
def test_three_half_steps_follow_exact_enumeration(backend):
    with use_backend(backend):
        assert min(p_values_of_three_half_steps((1 << 17) // FEWER.get(backend, 1))) > FALSE_ALARM


def test_the_same_test_refuses_a_sampler_biased_by_2_percent(monkeypatch):
    def biased(field, words):
        on = torch.sigmoid(field.double())
        return words < torch.clamp(on * 1.02, max=1.0) * 2.0**32

    monkeypatch.setattr(reference, "draw_states", biased)
    with use_backend("reference"):
        assert max(p_values_of_three_half_steps(1 << 17)) < FALSE_ALARM


@pytest.mark.parametrize("backend", [name for name in HERE if name not in FEWER])
def test_a_long_run_follows_the_boltzmann_distribution(backend):
    chains = 1 << 14
    v, weight, v_bias, h_bias = make(chains, 6, 5, scale=0.7)
    with use_backend(backend):
        end = rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=40, seed=12)
    joint = np.concatenate([end.v.numpy(), end.h.numpy()], axis=1)
    w, b, c = (x.double().numpy() for x in (weight, v_bias, h_bias))
    both = states(11)
    minus_energy = both[:, :6] @ b + both[:, 6:] @ c + ((both[:, :6] @ w) * both[:, 6:]).sum(1)
    probability = np.exp(minus_energy)
    assert p_value(number(torch.from_numpy(joint)), probability / probability.sum()) > FALSE_ALARM


@pytest.mark.parametrize("backend", HERE)
def test_gaussian_visible_units_have_their_moments(backend):
    chains, beta = 1024, 2.5
    _, weight, v_bias, h_bias = make(1, 6, 5)
    h = torch.ones(chains, 5)
    with use_backend(backend):
        end = rbm_gibbs(
            torch.zeros(chains, 6),
            h,
            weight,
            v_bias,
            h_bias,
            half_steps=1,
            first_step=1,
            beta=beta,
            visible="gaussian",
            probabilities=True,
            seed=3,
        )
    assert torch.allclose(end.v_mean, (v_bias + weight.sum(1)).expand(chains, 6), atol=1e-5)
    noise = ((end.v - end.v_mean) * beta**0.5).double().numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > FALSE_ALARM
    assert np.abs(np.cov(noise.T) - np.eye(6)).max() < 5 * np.sqrt(2 / chains)
    drawn = normal(3, torch.arange(chains), step=1, n=6, stream=Stream.RBM_VISIBLE_NOISE)
    assert torch.allclose(end.v, end.v_mean + drawn / beta**0.5, atol=1e-6)


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
@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stop_and_resume_is_one_run(backend, visible, stop):
    v, weight, v_bias, h_bias = make(5, 37, 21)
    v = v.float()
    arguments = {"seed": 4, "visible": visible}
    with use_backend(backend):
        whole = rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=5, **arguments)
        first = rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=stop, **arguments)
        rest = {"half_steps": 5 - stop, "first_step": stop, **arguments}
        second = rbm_gibbs(first.v, first.h, weight, v_bias, h_bias, **rest)
    assert torch.equal(whole.v, second.v) and torch.equal(whole.h, second.h)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("rows", [False, True])
def test_clamped_units_keep_their_values(backend, rows):
    v, weight, v_bias, h_bias = make(30, 70, 40)
    g = torch.Generator().manual_seed(5)
    shape = (30, 70) if rows else (70,)
    mask, values = (
        torch.rand(shape, generator=g) < 0.5,
        (torch.rand(shape, generator=g) < 0.5).to(torch.uint8),
    )
    with use_backend(backend):
        arguments = {"clamp_mask": mask, "half_steps": 4, "seed": 0, "probabilities": True}
        given = rbm_gibbs(v, None, weight, v_bias, h_bias, clamp_values=values, **arguments)
        held = rbm_gibbs(v, None, weight, v_bias, h_bias, **arguments)
        all_held = rbm_gibbs(
            v, None, weight, v_bias, h_bias, half_steps=4, clamp_mask=torch.ones(70).bool(), seed=0
        )
    mask, values = mask.expand(30, 70), values.expand(30, 70)
    assert torch.equal(given.v[mask], values[mask]) and torch.equal(held.v[mask], v[mask])
    assert torch.equal(given.v_mean[mask], values[mask].float())
    assert not torch.equal(held.v[~mask], v[~mask]) and torch.equal(all_held.v, v)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_clamp_values_of_any_real_dtype_are_taken_for_gaussian_units(backend, dtype):
    v, weight, v_bias, h_bias = make(5, 9, 7)
    mask, values = torch.arange(9) < 4, (torch.arange(9) % 2).to(dtype)
    arguments = {"clamp_mask": mask, "clamp_values": values, "visible": "gaussian", "seed": 0}
    with use_backend(backend):
        end = rbm_gibbs(v.float(), None, weight, v_bias, h_bias, **arguments)
    assert end.v.dtype == torch.float32
    assert torch.equal(end.v[:, :4], values[:4].float().expand(5, 4))


@pytest.mark.parametrize("backend", HERE)
def test_certain_units_are_certain_and_beta_zero_is_a_fair_coin(backend):
    v, h = torch.zeros(1000, 8), torch.zeros(1000, 8)
    bias = torch.tensor([-1e30, -100.0, -50.0, 50.0, 100.0, 1e30, -0.0, 0.0])
    with use_backend(backend):
        end = rbm_gibbs(v, h, torch.zeros(8, 8), bias, bias, seed=1)
        fair = rbm_gibbs(v, h, torch.zeros(8, 8), bias, bias, beta=0.0, seed=1)
    for state in (end.v, end.h):
        assert torch.equal(state[:, :6], torch.tensor([0.0, 0, 0, 1, 1, 1]).expand(1000, 6))
        assert stats.binomtest(int(state[:, 6:].sum()), 2000).pvalue > FALSE_ALARM
    assert stats.binomtest(int(fair.v.sum() + fair.h.sum()), 16000).pvalue > FALSE_ALARM


def test_a_rare_state_keeps_its_probability_on_either_side():
    # P = 2^-20: words on either side of the threshold, and their complements for the mirrored field.
    field = torch.tensor([[-13.862944]])
    e = reference_random.exp_nonpositive(field)
    threshold = float(e * 2.0**31 / (e + 1.0))
    for words, expected in ((int(threshold - 2) << 1, True), (int(threshold + 2) << 1, False)):
        assert bool(reference.draw_states(field, torch.tensor([[words]]))) is expected
        assert bool(reference.draw_states(-field, torch.tensor([[words ^ 0xFFFFFFFF]]))) is not expected


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.float32, torch.float64, torch.bfloat16]
)
def test_states_come_back_in_the_dtype_that_came(dtype):
    v, weight, v_bias, h_bias = make(4, 9, 7)
    expected = rbm_gibbs(v, None, weight, v_bias, h_bias, seed=0)
    end = rbm_gibbs(v.to(dtype), None, weight, v_bias, h_bias, seed=0)
    assert end.v.dtype == end.h.dtype == dtype and end.v_mean is None and end.h_mean is None
    assert torch.equal(end.v.to(torch.uint8), expected.v) and torch.equal(end.h.to(torch.uint8), expected.h)


def test_views_and_parameters_work_and_arguments_stay_as_they_are():
    v, weight, v_bias, h_bias = make(4, 9, 7)
    wide, tall = torch.zeros(8, 18, dtype=torch.uint8), weight.T.contiguous().T
    wide[::2, ::2] = v
    before = wide.clone()
    expected = rbm_gibbs(v, None, weight, v_bias, h_bias, seed=0)
    end = rbm_gibbs(
        wide[::2, ::2], None, torch.nn.Parameter(tall), torch.nn.Parameter(v_bias), h_bias, seed=0
    )
    assert torch.equal(end.v, expected.v) and torch.equal(end.h, expected.h) and torch.equal(wide, before)
    expanded = rbm_gibbs(v[:1].expand(4, 9), None, weight, v_bias[:1].expand(9), h_bias, seed=0)
    repeated = rbm_gibbs(v[:1].repeat(4, 1), None, weight, v_bias[:1].repeat(9), h_bias, seed=0)
    assert torch.equal(expanded.v, repeated.v)


def test_no_half_steps_and_no_chains():
    v, weight, v_bias, h_bias = make(4, 9, 7)
    h = torch.ones(4, 7)
    same = rbm_gibbs(v, h, weight, v_bias, h_bias, half_steps=0, probabilities=True)
    assert torch.equal(same.v, v) and torch.equal(same.h, h) and same.v is not v
    assert same.v_mean is None and same.h_mean is None
    none = rbm_gibbs(v[:0], None, weight, v_bias, h_bias, probabilities=True)
    assert none.v.shape == (0, 9) and none.h.shape == (0, 7) and none.v_mean.shape == (0, 9)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_no_result_claims_to_be_differentiable(backend, visible):
    v, weight, v_bias, h_bias = make(4, 9, 7)
    for tensor in (weight, v_bias, h_bias, beta := torch.ones(4), v := v.float()):
        tensor.requires_grad_()
    arguments = {"beta": beta, "visible": visible, "probabilities": True, "seed": 0}
    with use_backend(backend):
        end = rbm_gibbs(v, None, weight, v_bias, h_bias, clamp_mask=torch.arange(9) < 2, **arguments)
    assert not any(result.requires_grad for result in end)


def test_only_the_means_that_were_computed_come_back():
    v, weight, v_bias, h_bias = make(4, 9, 7)
    first = rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=1, probabilities=True, seed=0)
    second = rbm_gibbs(
        v, first.h, weight, v_bias, h_bias, half_steps=1, first_step=1, probabilities=True, seed=0
    )
    assert first.v_mean is None and second.h_mean is None
    assert first.h_mean.shape == (4, 7) and second.v_mean.shape == (4, 9)


def test_the_seed_comes_from_torch_if_none_is_given():
    v, weight, v_bias, h_bias = make(4, 90, 70)
    ends = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        ends.append(rbm_gibbs(v, None, weight, v_bias, h_bias).v)
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def change(**changes):
    v, weight, v_bias, h_bias = make(4, 9, 7)
    h = torch.zeros(4, 7, dtype=torch.uint8)
    base = {"v": v, "h": h, "weight": weight, "v_bias": v_bias, "h_bias": h_bias, "seed": 0}
    return {**base, **{name: value(base) if callable(value) else value for name, value in changes.items()}}


def at(name, value):
    def changed(base):
        tensor = base[name].clone()
        tensor.view(-1)[1] = value
        return tensor

    return changed


BAD = [
    ({"v": at("v", 2)}, ValueError, "v holds 2"),
    ({"h": at("h", 255)}, ValueError, "h holds 255"),
    ({"v": lambda b: b["v"].float() * 0.5}, ValueError, "v holds 0.5"),
    ({"v": lambda b: b["v"].to(torch.int8) * -1}, ValueError, "v holds -1"),
    ({"v": lambda b: b["v"].long()}, TypeError, "v is torch.int64"),
    ({"v": [1, 0]}, TypeError, "v is list"),
    ({"v": lambda b: b["v"][:, :8]}, ValueError, "v has shape"),
    ({"h": lambda b: b["h"][:3]}, ValueError, "h has 3 chains"),
    ({"h": None, "first_step": 1}, ValueError, "h is None"),
    ({"h": None, "half_steps": 0}, ValueError, "h is None"),
    (
        {"weight": torch.zeros(0, 7), "v": torch.zeros(4, 0), "v_bias": torch.zeros(0)},
        ValueError,
        "weight has shape",
    ),
    (
        {"weight": torch.zeros(9, 0), "h": torch.zeros(4, 0), "h_bias": torch.zeros(0)},
        ValueError,
        "weight has shape",
    ),
    ({"weight": lambda b: b["weight"].half()}, TypeError, "weight is torch.float16"),
    ({"weight": lambda b: b["weight"].to("meta")}, ValueError, "v_bias is on cpu, wanted meta"),
    ({"weight": at("weight", float("nan"))}, ValueError, "weight holds nan"),
    ({"weight": at("weight", float("-inf"))}, ValueError, "weight holds -inf"),
    ({"v_bias": at("v_bias", float("inf"))}, ValueError, "v_bias holds inf"),
    ({"h_bias": lambda b: b["v_bias"]}, ValueError, "h_bias has shape"),
    ({"h_bias": lambda b: b["h_bias"].long()}, TypeError, "h_bias is torch.int64"),
    ({"beta": float("nan")}, ValueError, "beta holds nan"),
    ({"beta": -0.5}, ValueError, "beta holds -0.5"),
    ({"beta": torch.ones(3)}, ValueError, "beta has shape"),
    ({"beta": torch.ones(4).long()}, TypeError, "beta is torch.int64"),
    ({"visible": "potts"}, ValueError, "visible is 'potts'"),
    ({"visible": "gaussian"}, TypeError, "v is torch.uint8"),
    ({"visible": "gaussian", "v": torch.ones(4, 9), "beta": 0.0}, ValueError, "beta holds 0.0"),
    ({"visible": "gaussian", "v": torch.full((4, 9), float("nan"))}, ValueError, "v holds nan"),
    ({"clamp_mask": torch.ones(4).bool()}, ValueError, "clamp_mask has shape"),
    ({"clamp_mask": torch.ones(9)}, TypeError, "clamp_mask is torch.float32"),
    ({"clamp_values": torch.ones(9)}, ValueError, "clamp_values came without"),
    (
        {"clamp_mask": torch.ones(9).bool(), "clamp_values": torch.ones(7)},
        ValueError,
        "clamp_values has shape",
    ),
    ({"clamp_mask": torch.ones(9).bool(), "clamp_values": torch.full((9,), 0.5)}, ValueError, "v holds 0.5"),
    (
        {"clamp_mask": torch.ones(9).bool(), "clamp_values": torch.ones(9, dtype=torch.complex64)},
        TypeError,
        "clamp_values is torch.complex64",
    ),
    ({"weight": lambda b: b["weight"].to_sparse()}, TypeError, "weight is torch.sparse_coo of torch.float32"),
    ({"v": lambda b: b["v"].to_sparse()}, TypeError, "v is torch.sparse_coo of torch.uint8"),
    ({"probabilities": 1}, TypeError, "probabilities is 1, wanted True or False"),
    ({"beta": "0.5"}, TypeError, "beta is str, wanted a number"),
    ({"beta": None}, TypeError, "beta is NoneType, wanted a number"),
    ({"half_steps": -1}, ValueError, "half_steps is -1"),
    ({"half_steps": 2.0}, ValueError, "half_steps is 2.0"),
    ({"first_step": 2**32 - 1}, ValueError, "first_step is 4294967295"),
    ({"first_step": -1}, ValueError, "first_step is -1"),
    ({"sample_ids": torch.arange(3)}, ValueError, "sample_ids has shape"),
    ({"sample_ids": torch.tensor([0, 1, 2, -3])}, ValueError, "sample_ids holds -3"),
    ({"seed": 0.5}, TypeError, "seed is 0.5"),
]


@pytest.mark.parametrize("changes, error, message", BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_refused_in_one_sentence(changes, error, message):
    arguments = change(**changes)
    positional = [arguments.pop(name) for name in ("v", "h", "weight", "v_bias", "h_bias")]
    with pytest.raises(error, match=message.replace("(", r"\(")):
        rbm_gibbs(*positional, **arguments)


def test_native_refuses_float64_and_says_who_takes_it():
    v, weight, v_bias, h_bias = make(4, 9, 7)
    with use_backend("native"), pytest.raises(TypeError, match=r"weight is torch\.float64"):
        rbm_gibbs(v, None, weight.double(), v_bias, h_bias, seed=0)


@pytest.mark.parametrize("shape", [(9, 1), (4, 1), (1, 9), (36,), (2, 2, 9), (4, 9, 1), ()])
def test_the_registered_op_refuses_masks_of_other_shapes(shape):
    v, weight, v_bias, h_bias = make(4, 9, 7)
    mask, h = torch.zeros(shape, dtype=torch.bool), torch.zeros(4, 7, dtype=torch.uint8)
    rest = (torch.ones(4), mask, 2, False, False, 0, torch.arange(4), 0)
    with use_backend("native"), pytest.raises(RuntimeError, match="bad clamp_mask"):
        torch.ops.fastgen.rbm_gibbs(v, h, weight, v_bias, h_bias, *rest)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros((), dtype=torch.uint8)}, "bad v, v_mean or h_mean"),
        ({2: torch.zeros(4, 9)}, "bad v"),
        ({3: torch.zeros(4, 6, dtype=torch.uint8)}, "bad h"),
        ({4: torch.zeros(())}, "bad v, v_mean or h_mean"),
        ({6: torch.zeros(9, 0)}, "bad weight"),
        ({6: torch.zeros(9, 14)[:, ::2]}, "bad layout of weight"),
        ({6: torch.zeros(14, 9).T[:, ::2]}, "bad layout of weight"),
        ({11: -2}, "bad steps"),
        ({15: -1}, "bad steps"),
        ({15: 2**32 - 1}, "bad steps"),
        ({11: 2**63 - 1}, "bad steps"),
    ],
)
def test_the_binding_guards_the_memory(change, message):
    v, weight, v_bias, h_bias = make(4, 9, 7)
    h, no = torch.zeros(4, 7, dtype=torch.uint8), torch.zeros(0, 9)
    model = [weight, v_bias, h_bias, torch.ones(4), None]
    arguments = [v, h, v.clone(), h.clone(), no, no, *model, 2, False, 0, torch.arange(4), 0, 19, 20]
    torch.ops.fastgen_native.rbm_gibbs(*arguments)
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.rbm_gibbs(*arguments)


@pytest.mark.skipif(not peak_memory.SUPPORTED, reason="needs Linux")
def test_peak_memory_is_the_result_and_bytes():
    """16384 chains of 64 visible and 2048 hidden units, float32: 4 bytes a unit of results, 2 of states."""
    script = """
import torch
from fastgen.bench.peak_memory import peak_mib
from fastgen.ops import rbm_gibbs
v, model = torch.ones(16384, 64), (torch.zeros(64, 2048), torch.zeros(64), torch.zeros(2048))
print(peak_mib(lambda: rbm_gibbs(v, None, *model, seed=1)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    units = 16384 * (64 + 2048)
    assert float(run.stdout) * 2**20 <= 6.5 * units


# The dispatcher.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("gaussian", [False, True])
def test_opcheck(backend, gaussian):
    v, weight, v_bias, h_bias = make(3, 9, 7)
    mask = torch.zeros(9, dtype=torch.bool)
    start, h, ids = (v.float() if gaussian else v), torch.zeros(3, 7), torch.arange(3)
    arguments = (start, h, weight, v_bias, h_bias, torch.ones(3), mask, 3, gaussian, True, 1, ids, 0)
    with use_backend(backend):
        torch.library.opcheck(torch.ops.fastgen.rbm_gibbs.default, arguments)


def test_compiles_whole():
    v, weight, v_bias, h_bias = make(3, 9, 7)

    def step(v):
        return rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=4, beta=0.5, probabilities=True, seed=2)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(v)
    assert all(torch.equal(a, b) for a, b in zip(step(v), compiled, strict=True))


@pytest.mark.parametrize(
    "mode", [nullcontext, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)], ids=str
)
def test_modes_change_nothing(mode):
    v, weight, v_bias, h_bias = make(3, 9, 7)
    expected = rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=4, seed=2)
    with mode():
        end = rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=4, seed=2)
    assert torch.equal(end.v, expected.v) and torch.equal(end.h, expected.h)


def test_vmap_says_why_not():
    v, weight, v_bias, h_bias = make(3, 9, 7)
    with pytest.raises(NotImplementedError, match="batched already"):
        torch.func.vmap(lambda w: rbm_gibbs(v, None, w, v_bias, h_bias, seed=1).v)(weight.expand(2, 9, 7))


# Triton: in its interpreter here, and compiled for GPUs that are not here.


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

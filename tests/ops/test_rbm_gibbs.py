"""The op rbm_gibbs: its distribution, its chains, and the states that come back."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.ops import rbm_gibbs
from fastgen.ops._registry import OPS
from fastgen.random import Stream, normal
from fastgen.reference import random as reference_random
from fastgen.reference import rbm_gibbs as reference
from fastgen.testing import FALSE_ALARM, chi_square

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
    "dtype",
    [
        *(torch.bool, torch.uint8, torch.int8),
        *(torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn),
    ],
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

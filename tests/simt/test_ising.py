"""The CUDA kernels of `ising`, run on the CPU in several orders of threads, against the reference."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from fastgen.reference import ising as reference

ORDERS = ["fwd", "rev", "deep", "5"]
FENCE = 64
# Height and width: one word, partial words, several words a row, more words than threads, odd sides.
PERIODIC = [(2, 2), (4, 6), (6, 64), (8, 66), (4, 130), (10, 194), (180, 130)]
FREE = [(1, 1), (1, 7), (7, 1), (3, 5), (5, 63), (4, 65), (9, 129), (6, 131), (261, 65)]
SHAPES = [(shape, True) for shape in PERIODIC] + [(shape, False) for shape in PERIODIC[:5] + FREE]
# Every lattice in one order of threads, some in all.
CASES = [(shape, periodic, ORDERS[i % 4]) for i, (shape, periodic) in enumerate(SHAPES)]
CASES += [(shape, p, order) for shape, p in [((10, 194), True), ((9, 129), False)] for order in ORDERS]


def problem(shape, chains=3, seed=7):
    generator = torch.Generator().manual_seed(seed)
    spins = torch.randint(0, 2, (chains, *shape), generator=generator, dtype=torch.int8) * 2 - 1
    beta = torch.tensor([0.44, 0.1, 1.5], dtype=torch.float64)[torch.arange(chains) % 3]
    field = torch.tensor([0.0, 0.3, -0.2], dtype=torch.float64)[torch.arange(chains) % 3]
    sample_ids = torch.tensor([0, 2**40 + 1, 5])[torch.arange(chains) % 3]
    return spins, beta, field, sample_ids


def run(
    ops, spins, thresholds, sweeps, sample_ids, *, periodic, metropolis, observe=True, seed=99, first_step=0
):
    """Runs the op on a copy of the spins that lies between two fences."""
    memory = torch.full((spins.numel() + 2 * FENCE,), 77, dtype=torch.int8)
    state = memory[FENCE:-FENCE].view(spins.shape)
    state.copy_(spins)
    traces = [torch.zeros(len(spins), sweeps if observe else 0, dtype=torch.int64) for _ in range(2)]
    ops.ising(state, *traces, thresholds, periodic, metropolis, sweeps, seed, sample_ids, first_step)
    assert (memory[:FENCE] == 77).all() and (memory[-FENCE:] == 77).all()
    return state, *traces


COUPLING, FIRST_STEP = -0.9, 2**30


@cache
def expected(shape, periodic, metropolis, chains, sweeps):
    spins, beta, field, sample_ids = problem(shape, chains)
    return reference.ising(
        spins, beta, field, COUPLING, periodic, metropolis, sweeps, 99, sample_ids, FIRST_STEP, True
    )


def assert_equal_to_reference(ops, shape, periodic, metropolis, chains=3, sweeps=3):
    spins, beta, field, sample_ids = problem(shape, chains)
    thresholds = reference.thresholds(beta, field, COUPLING, metropolis)
    options = {"periodic": periodic, "metropolis": metropolis, "first_step": FIRST_STEP}
    got = run(ops, spins, thresholds, sweeps, sample_ids, **options)
    reference_says = expected(shape, periodic, metropolis, chains, sweeps)
    for name, a, b in zip(("spins", "magnetisation", "bonds"), got, reference_says, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("metropolis", [False, True], ids=["heat_bath", "metropolis"])
@pytest.mark.parametrize("shape,periodic,order", CASES)
def test_chain_in_shared_memory(simt_ops, monkeypatch, shape, periodic, metropolis, order):
    monkeypatch.setenv("SIMT_ORDER", order)
    assert_equal_to_reference(simt_ops, shape, periodic, metropolis)


@pytest.mark.parametrize("metropolis", [False, True], ids=["heat_bath", "metropolis"])
@pytest.mark.parametrize("shape,periodic,order", CASES)
def test_chain_in_device_memory(simt_ops, monkeypatch, shape, periodic, metropolis, order):
    monkeypatch.setenv("SIMT_ORDER", order)
    monkeypatch.setenv("SIMT_SHARED_KB", "0")
    assert_equal_to_reference(simt_ops, shape, periodic, metropolis)


def test_lattice_that_no_block_can_hold(simt_ops):
    assert_equal_to_reference(simt_ops, (30_000, 2), True, False, chains=1, sweeps=1)


def test_thresholds_of_zero_and_one_and_ties(simt_ops):
    """P = 0 never, P = 1 always; a number equal to its threshold is not below it."""
    shape, ids = (4, 64), torch.arange(2)
    spins = torch.ones(2, *shape, dtype=torch.int8)
    for threshold, expected in ((0, -1), (2**32, 1)):
        table = torch.full((2, 2, 9), threshold)
        state, *_ = run(simt_ops, spins, table, 2, ids, periodic=True, metropolis=False)
        assert (state == expected).all()
    numbers = reference._numbers(*shape, 0, 99, ids, 0)  # of the first half sweep, colour 0
    for threshold, expected in ((numbers[0, 0, 0], -1), (numbers[0, 0, 0] + 1, 1)):
        table = torch.full((2, 2, 9), int(threshold))
        state, *_ = run(simt_ops, spins, table, 1, ids, periodic=True, metropolis=False)
        assert state[0, 0, 0] == expected


def test_chain_has_the_same_bits_in_any_batch_and_after_a_stop(simt_ops):
    spins, beta, field, _ = problem((12, 66), chains=9)
    ids = torch.arange(100, 109)
    thresholds = reference.thresholds(beta, field, 1.0, False)
    options = {"periodic": True, "metropolis": False}
    whole, magnetisation, bonds = run(simt_ops, spins, thresholds, 6, ids, **options)
    alone = run(simt_ops, spins[4:5], thresholds[4:5].clone(), 6, ids[4:5].clone(), **options)
    for a, b in zip(alone, (whole, magnetisation, bonds), strict=True):
        assert torch.equal(a, b[4:5])
    half, *_ = run(simt_ops, spins, thresholds, 2, ids, **options)
    rest, *traces = run(simt_ops, half, thresholds, 4, ids, first_step=2, **options)
    assert torch.equal(rest, whole)
    assert torch.equal(traces[0], magnetisation[:, 2:]) and torch.equal(traces[1], bonds[:, 2:])


def test_nothing_to_do(simt_ops):
    spins, beta, field, ids = problem((4, 4))
    thresholds = reference.thresholds(beta, field, 1.0, False)
    state, *_ = run(simt_ops, spins, thresholds, 0, ids, periodic=True, metropolis=False)
    assert torch.equal(state, spins)
    run(simt_ops, spins[:0], thresholds[:0], 3, ids[:0], periodic=True, metropolis=False)
    state, *traces = run(simt_ops, spins, thresholds, 1, ids, periodic=True, metropolis=False, observe=False)
    assert traces[0].shape == (3, 0) and not torch.equal(state, spins)


def test_wrong_memory_is_refused(simt_ops):
    spins, beta, field, ids = problem((4, 4))
    thresholds = reference.thresholds(beta, field, 1.0, False)
    options = {"periodic": True, "metropolis": False}
    with pytest.raises(RuntimeError, match="bad thresholds"):
        run(simt_ops, spins, thresholds[:1], 1, ids, **options)
    with pytest.raises(RuntimeError, match="bad sample_ids"):
        run(simt_ops, spins, thresholds, 1, ids[:1], **options)
    with pytest.raises(RuntimeError, match="even sides"):
        run(simt_ops, spins[:, :3].contiguous(), thresholds, 1, ids, **options)
    with pytest.raises(RuntimeError, match="bad traces"):
        traces = torch.zeros(2, 3, 2, dtype=torch.int64)
        simt_ops.ising(spins.clone(), *traces, thresholds, True, False, 1, 1, ids, 0)


def bond_sums(states):
    return (states * (np.roll(states, 1, 1) + np.roll(states, 1, 2))).sum((1, 2))


def chi_square(ops, beta, expected, levels):
    """The statistic, over the energy levels, of chains sampled at `beta`; and its critical value at 1e-4."""
    chains = round(expected.sum())
    spins, ids = torch.ones(chains, 4, 4, dtype=torch.int8), torch.arange(chains)
    betas = torch.full((chains,), beta, dtype=torch.float64)
    thresholds = reference.thresholds(betas, torch.zeros_like(betas), 1.0, False)
    state, *_ = run(ops, spins, thresholds, 60, ids, periodic=True, metropolis=False, observe=False)
    counts = np.bincount(np.searchsorted(levels, bond_sums(state.numpy().astype(int))), minlength=len(levels))
    common = expected > 5  # rarer levels count as one
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    return ((counts - expected) ** 2 / expected).sum(), chi2.isf(1e-4, len(counts) - 1)


@pytest.mark.slow
def test_exact_distribution_of_four_by_four(simt_ops):
    """Energies against all 2**16 states, with a false alarm in 10,000; a sampler at 1.02 beta fails."""
    chains, beta = 20_000, 0.44
    states = ((np.arange(2**16)[:, None] >> np.arange(16)) & 1).reshape(-1, 4, 4) * 2 - 1
    levels, level = np.unique(bond_sums(states), return_inverse=True)
    weight = np.bincount(level, np.exp(beta * bond_sums(states)))
    expected = chains * weight / weight.sum()
    statistic, critical = chi_square(simt_ops, beta, expected, levels)
    assert statistic < critical
    statistic, critical = chi_square(simt_ops, 1.02 * beta, expected, levels)
    assert statistic > critical

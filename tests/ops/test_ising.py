"""The op ising: its distribution, its bits, its sums, its memory, and what it refuses."""

import ctypes
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.ops import ising
from fastgen.ops._registry import OPS
from fastgen.reference.ising import thresholds
from fastgen.testing import FALSE_ALARM, chi_square, fenced, with_threads

ISAS = native.usable_isas()
HERE = [name for name in OPS["ising"].implementations if usable("ising", name, "cpu")]
METHODS = ("heat_bath", "metropolis")
PERIODIC = [(2, 2), (4, 4), (6, 10), (2, 64), (64, 2), (32, 66), (34, 128), (10, 130), (6, 1030)]
FREE = [(1, 1), (1, 5), (5, 1), (4, 4), (7, 9), (3, 65), (5, 64), (4, 131), (33, 127), (3, 1029)]
SHAPES = [(*s, True) for s in PERIODIC] + [(*s, False) for s in FREE]


def random_spins(chains, height, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, (chains, height, width), generator=g) * 2 - 1).to(torch.int8)


def energy_of(spins, coupling=1.0, field=0.0, periodic=True):
    """Bond by bond, written another way than the op."""
    s = spins.double()
    right, down = s * s.roll(-1, -1), s * s.roll(-1, -2)
    if not periodic:
        right, down = right[..., :, :-1], down[..., :-1, :]
    return -coupling * (right.sum((-1, -2)) + down.sum((-1, -2))) - field * s.sum((-1, -2))


def equal(a, b):
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("height", "width", "periodic"), SHAPES)
def test_every_instruction_set_has_the_bits_of_the_reference(height, width, periodic, method):
    spins = random_spins(3, height, width)
    beta = torch.tensor([0.0, 0.44, 5.0])
    for coupling, field in ((1.0, 0.0), (-1.0, 0.3), (0.7, torch.tensor([-0.2, 0.0, 9.0]))):
        options = {"sweeps": 3, "coupling": coupling, "field": field, "periodic": periodic, "method": method}
        options |= {"observe": True, "seed": 77, "first_step": 5, "sample_ids": torch.tensor([3, 2**33, 9])}
        with use_backend("reference"):
            wanted = ising(spins, beta, **options)
        for isa in ISAS:
            with native.instruction_set(isa), use_backend("native"):
                assert equal(ising(spins, beta, **options), wanted), isa


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_the_native_thresholds_are_those_of_the_reference(tmp_path):
    """A threshold that is one off would show in one draw of 2**32."""
    root, library = Path(__file__).parents[2], tmp_path / "rule.so"
    text = """#include "cpu/ising_rule.h"
        extern "C" void rule(double beta, double field, double coupling, bool metropolis, int64_t* table) {
          const auto rule = fastgen::ising_rule(beta, field, coupling, metropolis);
          std::memcpy(table, rule.up_below, sizeof rule.up_below);
        }"""
    (tmp_path / "rule.cpp").write_text(text)
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-ffp-contract=off", f"-I{root / 'csrc'}"]
    flags += [f"-I{root / 'csrc/include'}", str(tmp_path / "rule.cpp"), "-o", str(library)]
    subprocess.run(["g++", *flags], check=True)
    rule = ctypes.CDLL(str(library)).rule
    rule.argtypes = [ctypes.c_double] * 3 + [ctypes.c_bool, ctypes.c_void_p]
    rng = np.random.default_rng(4)
    beta, field = np.abs(rng.normal(0, [[0.1], [1], [50]], (3, 300))).ravel(), rng.normal(0, 1, 900)
    for coupling, metropolis in itertools.product((1.0, -0.3, 0.0, 40.0), (False, True)):
        wanted = thresholds(torch.from_numpy(beta), torch.from_numpy(field), coupling, metropolis).numpy()
        found = np.empty_like(wanted)
        for i in range(len(beta)):
            rule(beta[i], field[i], coupling, metropolis, found[i].ctypes.data)
        assert np.array_equal(found, wanted)


def test_comparing_lazily_gives_the_spins_of_comparing_all_32_bits():
    """The reference assembles whole numbers; the native kernel stops early. Rare ties need many spins."""
    spins = random_spins(8, 64, 64)
    for beta in (0.1, 0.44, 1.0):
        with use_backend("reference"):
            wanted = ising(spins, beta, sweeps=4, seed=3).spins
        assert torch.equal(ising(spins, beta, sweeps=4, seed=3).spins, wanted)


def exact_4x4(beta, field):
    """All 65536 states: cell of each state (energy and magnetisation), and the probability of each cell."""
    states = (np.arange(65536)[:, None] >> np.arange(16)) & 1
    spins = torch.from_numpy(2 * states - 1).view(-1, 4, 4)
    energy, magnetisation = energy_of(spins, 1.0, field).numpy(), spins.sum((1, 2)).numpy()
    weight = np.exp(-beta * (energy - energy.min()))
    _, cell = np.unique(np.stack([energy, magnetisation]), axis=1, return_inverse=True)
    return cell.ravel(), np.bincount(cell.ravel(), weight / weight.sum())


def p_value_4x4(spins, beta, field):
    cell, probability = exact_4x4(beta, field)
    number = ((spins.flatten(1).long() > 0) << torch.arange(16)).sum(1).numpy()
    return chi_square(np.bincount(cell[number], minlength=len(probability)), probability)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("method", METHODS)
def test_4x4_follows_exact_enumeration(method, backend):
    chains, sweeps = (1500, 15) if backend == "reference" else (40_000, 40)
    with use_backend(backend):
        for seed, (beta, field) in enumerate(((0.3, 0.1), (0.44, 0.0))[: 1 if backend == "reference" else 2]):
            spins = ising(
                random_spins(chains, 4, 4), beta, field=field, method=method, sweeps=sweeps, seed=seed
            ).spins
            assert p_value_4x4(spins, beta, field) > FALSE_ALARM


@pytest.mark.parametrize("method", METHODS)
def test_a_sampler_biased_by_two_percent_fails_that_test(method):
    """At field 0 the field h makes P(up | sum 0) = 0.51: the biased sampler, tested against no field."""
    beta = 0.3
    biased_field = np.log(0.51 / 0.49) / (2 * beta)
    spins = ising(
        random_spins(60_000, 4, 4), beta, field=biased_field, method=method, sweeps=40, seed=0
    ).spins
    assert p_value_4x4(spins, beta, 0.0) < FALSE_ALARM
    hotter = ising(random_spins(60_000, 4, 4), beta * 0.98, method=method, sweeps=40, seed=0).spins
    assert p_value_4x4(hotter, beta, 0.0) < FALSE_ALARM


def test_thresholds_are_exact_to_32_bits():
    beta, field = (
        torch.tensor([0.44, 3.0], dtype=torch.float64),
        torch.tensor([0.1, -0.5], dtype=torch.float64),
    )
    gain = 2 * beta[:, None].numpy() * (0.9 * np.arange(-4, 5) + field[:, None].numpy())
    up = 1 / (1 + np.exp(-gain.astype(np.longdouble)))
    heat_bath = thresholds(beta, field, 0.9, False).numpy()
    assert (heat_bath[:, 0] == np.ceil(up * 2.0**32)).all() and (heat_bath[:, 1] == heat_bath[:, 0]).all()
    metropolis = thresholds(beta, field, 0.9, True).numpy()
    assert (metropolis[:, 0] == np.ceil(np.minimum(1, np.exp(gain)) * 2.0**32)).all()
    stay = 1 - np.minimum(1, np.exp(-gain.astype(np.longdouble)))
    assert (np.abs(metropolis[:, 1] - np.ceil(stay * 2.0**32)) <= 1).all()  # 1 - p of float64: half a unit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("height", "width", "periodic"), [(8, 12, True), (2, 6, True), (5, 7, False), (1, 3, False)]
)
def test_magnetisation_and_energy_are_those_of_the_spins(height, width, periodic, method):
    spins, options = random_spins(2, height, width), {"coupling": -0.5, "field": 0.25, "periodic": periodic}
    options |= {"method": method, "seed": 4, "observe": True}
    trace = ising(spins, 0.7, sweeps=5, **options)
    for sweep in range(5):
        state = ising(spins, 0.7, sweeps=sweep + 1, **options).spins
        assert torch.equal(trace.magnetisation[:, sweep], state.long().sum((1, 2)))
        energy = energy_of(state, -0.5, 0.25, periodic)
        assert torch.allclose(trace.energy[:, sweep], energy, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("height", "width", "periodic"), [(6, 130, True), (64, 64, True), (7, 33, False)])
def test_a_chain_has_the_same_bits_in_any_batch_with_any_threads_and_after_a_stop(height, width, periodic):
    ids = torch.arange(1000, 1257)
    spins, options = random_spins(257, height, width), {"periodic": periodic, "seed": 6}
    beta = torch.linspace(0, 1, 257)
    whole = ising(spins, beta, sweeps=6, sample_ids=ids, **options).spins
    for count in (1, 2):
        with with_threads(count):
            assert torch.equal(ising(spins, beta, sweeps=6, sample_ids=ids, **options).spins, whole)
            for i in (0, 200):
                alone = slice(i, i + 1)
                mine = {"sample_ids": ids[alone], **options}
                assert torch.equal(ising(spins[alone], beta[alone], sweeps=6, **mine).spins, whole[alone])
    half = ising(spins, beta, sweeps=2, sample_ids=ids, **options).spins
    assert torch.equal(ising(half, beta, sweeps=4, first_step=2, sample_ids=ids, **options).spins, whole)


def test_one_large_chain_shared_by_threads_has_the_bits_of_one_thread():
    spins, found = random_spins(1, 512, 514), []
    for threads in (1, 2):
        with with_threads(threads):
            found.append(ising(spins, 0.44, sweeps=3, observe=True, seed=1))
    assert equal(*found)


def test_cold_and_hot_limits():
    up = torch.ones(2, 16, 16, dtype=torch.int8)
    for method in METHODS:
        assert torch.equal(ising(up, 50.0, sweeps=5, seed=1, method=method).spins, up)
        assert torch.equal(ising(up, 1.0, field=-60.0, sweeps=1, seed=1, method=method).spins, -up)
    hot = ising(torch.ones(64, 64, 64, dtype=torch.int8), 0.0, sweeps=1, seed=1).spins
    assert abs(float(hot.double().mean())) < 5 / 512
    board = 1 - 2 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)
    cold = ising(board.to(torch.int8)[None], 50.0, coupling=-1.0, sweeps=5, seed=1).spins
    assert torch.equal(cold[0], board.to(torch.int8))


def test_the_input_is_left_alone_and_may_be_strided_or_expanded():
    spins = random_spins(1, 8, 12)
    before = spins.clone()
    wanted = ising(spins.expand(3, -1, -1).contiguous(), 0.4, sweeps=2, seed=1).spins
    assert torch.equal(ising(spins.expand(3, -1, -1), 0.4, sweeps=2, seed=1).spins, wanted)
    turned = spins.mT.contiguous().mT
    assert torch.equal(ising(turned, 0.4, sweeps=2, seed=1).spins, wanted[:1])
    assert torch.equal(spins, before)


def test_no_sweeps_and_no_chains_give_back_what_came():
    spins = random_spins(2, 4, 6)
    for backend in HERE:
        with use_backend(backend):
            state = ising(spins, 0.4, sweeps=0, observe=True, seed=1)
            assert torch.equal(state.spins, spins) and state.energy.shape == (2, 0)
            assert ising(spins[:0], 0.4, sweeps=3, observe=True, seed=1).magnetisation.shape == (0, 3)


@pytest.mark.parametrize(("height", "width", "periodic"), [(6, 10, True), (7, 131, False)])
def test_the_native_kernel_writes_inside_its_memory(height, width, periodic):
    spins = random_spins(2, height, width)
    beta, field = torch.full((2,), 0.4, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for isa in ISAS:
        with (
            native.instruction_set(isa),
            fenced((2, height, width), torch.int8) as state,
            fenced((2, 3), torch.int64) as magnetisation,
            fenced((2, 3), torch.int64) as bonds,
        ):
            state.copy_(spins)
            run = torch.ops.fastgen_native.ising
            run(state, magnetisation, bonds, beta, field, 1.0, periodic, False, 3, 9, torch.arange(2), 0)
            wanted = ising(spins, 0.4, sweeps=3, seed=9, periodic=periodic, observe=True)
            assert torch.equal(state, wanted.spins) and torch.equal(magnetisation, wanted.magnetisation)
            assert torch.equal(wanted.energy, -bonds.double())


def test_peak_memory_is_the_result_and_the_packed_chains():
    """64 chains of 1024 x 1024: 64 MiB of spins, 8 MiB packed; a float copy would be 256 MiB."""
    script = """
import torch
from fastgen.bench.peak_memory import peak_mib
from fastgen.ops import ising
spins = torch.ones(64, 1024, 1024, dtype=torch.int8)
print(peak_mib(lambda: ising(spins, 0.44, sweeps=1, observe=True, seed=1)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    result, packed = 64, 8
    assert float(run.stdout) <= result + 1.2 * packed


BAD = {
    "sweeps type": (lambda s: ising(s, 0.4, sweeps=1.5), TypeError, "sweeps is 1.5, wanted an int"),
    "periodic": (lambda s: ising(s, 0.4, periodic="no"), TypeError, "periodic is 'no', wanted True or"),
    "beta word": (lambda s: ising(s, "cold"), TypeError, "beta is 'cold', wanted a number or a floating"),
    "no coupling": (lambda s: ising(s, 0.4, coupling=None), TypeError, "coupling is None, wanted a number"),
    "dtype": (lambda s: ising(s.float(), 0.4), TypeError, "spins is torch.float32, wanted an int8 tensor"),
    "no tensor": (lambda s: ising([1, -1], 0.4), TypeError, "spins is list, wanted an int8 tensor"),
    "dimensions": (lambda s: ising(s[0], 0.4), ValueError, r"spins has shape \(4, 6\), wanted"),
    "empty side": (lambda s: ising(s[:, :0], 0.4), ValueError, r"spins has shape \(2, 0, 6\), wanted"),
    "values": (lambda s: ising(s * 2, 0.4), ValueError, "spins holds -?2, wanted -1 and .1"),
    "odd height": (
        lambda s: ising(s[:, :3], 0.4),
        ValueError,
        "periodic lattice of 3 x 6, wanted even sides",
    ),
    "odd width": (
        lambda s: ising(s[:, :, :5], 0.4),
        ValueError,
        "periodic lattice of 4 x 5, wanted even sides",
    ),
    "beta nan": (lambda s: ising(s, float("nan")), ValueError, "beta holds nan, wanted finite numbers"),
    "beta inf": (
        lambda s: ising(s, torch.tensor([1, torch.inf])),
        ValueError,
        "beta holds inf, wanted finite",
    ),
    "beta shape": (
        lambda s: ising(s, torch.ones(3)),
        ValueError,
        r"beta has shape \(3,\), wanted \(\) or \(2,\)",
    ),
    "beta dtype": (lambda s: ising(s, torch.ones(2).int()), TypeError, "beta is torch.int32 on cpu, wanted"),
    "field nan": (lambda s: ising(s, 0.4, field=float("nan")), ValueError, "field holds nan, wanted finite"),
    "coupling": (
        lambda s: ising(s, 0.4, coupling=float("inf")),
        ValueError,
        "coupling is inf, wanted a finite",
    ),
    "method": (
        lambda s: ising(s, 0.4, method="gibbs"),
        ValueError,
        "method is 'gibbs', wanted 'heat_bath' or",
    ),
    "sweeps": (lambda s: ising(s, 0.4, sweeps=-1), ValueError, "sweeps is -1, wanted at least 0"),
    "first step": (
        lambda s: ising(s, 0.4, first_step=2**31),
        ValueError,
        "first_step is 2147483648 for 1 steps",
    ),
    "ids": (lambda s: ising(s, 0.4, sample_ids=torch.arange(3)), ValueError, r"sample_ids has shape \(3,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, message = BAD[case]
    for backend in HERE:
        with use_backend(backend), pytest.raises(error, match=message):
            call(random_spins(2, 4, 6))


def test_the_native_kernel_guards_itself_against_sizes_it_cannot_hold():
    one = torch.zeros(1, dtype=torch.float64)
    for height, width, periodic in ((2, 0, True), (0, 2, False), (3, 4, True)):
        spins = torch.ones(1, height, width, dtype=torch.int8)
        with pytest.raises(RuntimeError, match=r"size of the lattice|even sides"):
            torch.ops.fastgen.ising(spins, one, one, 1.0, periodic, False, 1, 0, torch.arange(1), 0, False)


def test_free_edges_take_odd_sides():
    for height, width in itertools.product((1, 3), (1, 5)):
        assert ising(random_spins(1, height, width), 0.4, periodic=False, seed=1).spins.shape == (
            1,
            height,
            width,
        )

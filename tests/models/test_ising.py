"""fastgen.models.Ising against enumeration, Kaufman's and Onsager's results, and itself in other batches."""

import math

import pytest
import torch
from scipy import special, stats

import fastgen
from fastgen import models
from fastgen.models import Ising


def lattices(height: int, width: int) -> torch.Tensor:
    """All states (2^N, height, width) of -1 and +1."""
    sites = height * width
    bits = (torch.arange(2**sites)[:, None] >> torch.arange(sites)) & 1
    return (2 * bits - 1).view(-1, height, width)


def bonds(spins: torch.Tensor) -> torch.Tensor:
    """Sum over the bonds of a periodic lattice of s s'."""
    return (spins * (spins.roll(1, 1) + spins.roll(1, 2))).sum((1, 2))


ALL = lattices(4, 4)
ALL_BONDS, ALL_SUMS = bonds(ALL), ALL.sum((1, 2))


def exact_energies(beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The energies of the 4 x 4 torus and their probabilities."""
    p = torch.softmax(beta * ALL_BONDS.double(), 0)
    levels, index = ALL_BONDS.unique(return_inverse=True)
    return -levels, torch.zeros(len(levels), dtype=torch.float64).index_add(0, index, p)


def p_value(energies: torch.Tensor, beta: float) -> float:
    """Chi-square of sampled energies of the 4 x 4 torus, levels of fewer than 8 expected taken together."""
    levels, p = exact_energies(beta)
    seen = (energies[:, None] == levels).sum(0).double()
    assert seen.sum() == len(energies)
    expected = p * len(energies)
    rare = expected < 8
    if rare.any():
        seen, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, expected))
    return stats.chisquare(seen.numpy(), expected.numpy()).pvalue


# The exact results


@pytest.mark.parametrize("beta", [0.05, 0.3, models.critical_beta(), 0.6, 1.5])
@pytest.mark.parametrize("size", [(4, 4), (2, 4), (4, 2)])
def test_kaufmans_formula_is_the_sum_over_all_states(size, beta):
    value = bonds(lattices(*size)).double()
    b = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    log_z = models.torus_log_partition(*size, b)
    assert log_z.item() == pytest.approx(torch.logsumexp(beta * value, 0).item(), rel=1e-12)
    mean = (torch.softmax(beta * value, 0) * value).sum().item()
    assert models.torus_energy(*size, beta) == pytest.approx(-mean / math.prod(size), rel=1e-10)


@pytest.mark.parametrize("coupling", [1.0, -0.5])
@pytest.mark.parametrize("beta", [0.05, 0.2, 0.3, 0.6, 1.5])
def test_a_large_torus_has_onsagers_energy(beta, coupling):
    beta = beta / abs(coupling)
    wanted = models.onsager_energy(beta, coupling)
    assert models.torus_energy(256, 256, beta, coupling) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("beta", [0.1, 0.4, 0.4406, 0.4408, 0.7])
def test_onsagers_energy_with_scipys_elliptic_integral(beta):
    kappa = 2 * math.sinh(2 * beta) / math.cosh(2 * beta) ** 2
    part = 2 / math.pi * (2 * math.tanh(2 * beta) ** 2 - 1) * special.ellipk(kappa**2)
    assert models.onsager_energy(beta) == pytest.approx(-(1 + part) / math.tanh(2 * beta), rel=1e-9)


def test_the_special_points():
    assert models.critical_beta() == pytest.approx(0.4406867935097715, abs=1e-15)
    assert models.critical_beta(-2.0) == models.critical_beta() / 2
    assert models.onsager_energy(models.critical_beta()) == pytest.approx(-math.sqrt(2), abs=1e-12)
    assert models.onsager_energy(0.0) == models.torus_energy(4, 4, 0.0) == 0.0
    assert models.onsager_magnetisation(0.44) == 0.0 < models.onsager_magnetisation(0.441)
    assert models.onsager_magnetisation(5.0) == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ValueError, match="coupling is 0"):
        models.critical_beta(0.0)


def test_the_binder_cumulant_at_its_two_ends():
    assert models.binder_cumulant(torch.tensor([0.8, -0.8, 0.8])).item() == pytest.approx(2 / 3)
    normal = torch.randn(3, 200_000, generator=torch.Generator().manual_seed(0))
    assert models.binder_cumulant(normal).abs().max() < 0.02


# The sampler


@pytest.mark.parametrize("method", ["heat_bath", "metropolis"])
@pytest.mark.parametrize("beta", [0.2, models.critical_beta(), 0.7])
def test_samples_of_4_x_4_have_the_exact_distribution(method, beta):
    run = dict(seed=5, sweeps=50, start="up")
    model, ids = Ising(4, 4, method=method), torch.arange(20_000)
    energies = -bonds(model.sample(ids, beta=beta, **run).long())
    assert p_value(energies, beta) > 1e-4  # false alarms: 6 in 10,000 over this test's cases
    hotter = -bonds(model.sample(ids, beta=beta / 1.05, **run).long())
    assert p_value(hotter, beta) < 1e-6


def test_metropolis_alone_keeps_states_without_a_local_field_for_ever():
    stripes = torch.tensor([1, 1, -1, -1], dtype=torch.int8)
    diagonal = torch.stack([stripes.roll(i) for i in range(4)])[None]
    run = dict(seed=0, beta=0.7, sweeps=100, start=diagonal)
    assert bonds(Ising(4, 4, method="metropolis").sample(torch.arange(1), **run).long()).item() == 0
    assert bonds(Ising(4, 4).sample(torch.arange(1), **run).long()).item() > 0


def test_a_temperature_sweep_agrees_with_enumeration():
    betas = [0.2, models.critical_beta(), 0.6]
    result = Ising(4, 4).temperature_sweep(betas, seed=3, chains=64, sweeps=2000, burn_in=100)
    for t, beta in enumerate(betas):
        p = torch.softmax(beta * ALL_BONDS.double(), 0)
        m, e = ALL_SUMS.double() / 16, -ALL_BONDS.double() / 16
        mean = lambda x: (p * x).sum().item()  # noqa: E731, B023
        exact = {
            "magnetisation": mean(m.abs()),
            "energy": mean(e),
            "specific_heat": beta**2 * 16 * (mean(e**2) - mean(e) ** 2),
            "susceptibility": beta * 16 * (mean(m**2) - mean(m.abs()) ** 2),
            "binder": 1 - mean(m**4) / (3 * mean(m**2) ** 2),
        }
        for name, wanted in exact.items():
            value, error = (x[t].item() for x in getattr(result, name))
            assert abs(value - wanted) < 4.5 * error, name  # false alarms: 15 x 7e-6
            assert 0 < error < 0.02 * max(1.0, wanted), name


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.35, models.critical_beta(), 0.55])
@pytest.mark.parametrize("method", ["heat_bath", "metropolis"])
def test_energy_and_magnetisation_of_64_x_64_are_the_exact_ones(beta, method):
    result = Ising(64, 64, method=method).temperature_sweep(
        [beta], seed=11, chains=64, sweeps=20_000, burn_in=10_000
    )
    value, error = (x.item() for x in result.energy)
    assert error < 1e-3
    assert abs(value - models.torus_energy(64, 64, beta)) < 4.5 * error  # false alarms: 6 x 7e-6
    magnetisation, error = (x.item() for x in result.magnetisation)
    if beta > 0.5:  # far below the critical temperature a torus is as good as infinite
        assert abs(magnetisation - models.onsager_magnetisation(beta)) < 4.5 * error
        assert result.binder.value.item() == pytest.approx(2 / 3, abs=1e-3)
    if beta < 0.4:
        assert magnetisation < 0.1 and result.binder.value.item() < 0.1


def test_an_antiferromagnet_has_the_energy_of_its_mirror():
    result = Ising(8, 8, coupling=-2.0).temperature_sweep([0.2], seed=1, chains=32, sweeps=1000, burn_in=200)
    assert (
        abs(result.energy.value.item() - models.torus_energy(8, 8, 0.2, -2.0))
        < 4.5 * result.energy.error.item()
    )


def test_a_field_alone_gives_a_hyperbolic_tangent():
    spins = Ising(7, 5, coupling=0.0, field=0.5, periodic=False).sample(
        torch.arange(2000), seed=0, beta=0.8, sweeps=1
    )
    mean, error = spins.double().mean().item(), 1 / math.sqrt(spins.numel())
    assert abs(mean - math.tanh(0.4)) < 4.5 * error  # false alarms: 7e-6


# Replicas


def test_replicas_that_swap_have_the_exact_distribution_at_each_temperature():
    betas = [0.1, 0.3, 0.5, 0.8]
    result = Ising(4, 4).parallel_tempering(
        betas, seed=9, sample_ids=torch.arange(8000), rounds=40, start="up"
    )
    assert (result.swap_rate > 0.2).all() and (result.swap_rate < 0.9).all()
    for t, beta in enumerate(betas):  # false alarms: 4 in 10,000
        assert p_value(-bonds(result.spins[:, t].long()), beta) > 1e-4


def test_swaps_keep_detailed_balance_from_equilibrium():
    """With two replicas in equilibrium and one round, only a right acceptance keeps both distributions."""
    betas = torch.tensor([0.2, 0.5], dtype=torch.float64)
    ids, generator = torch.arange(40_000), torch.Generator().manual_seed(2)
    start = torch.stack(
        [
            ALL[
                torch.multinomial(
                    torch.softmax(b * ALL_BONDS.double(), 0), len(ids), True, generator=generator
                )
            ]
            for b in betas
        ],
        1,
    ).to(torch.int8)
    result = Ising(4, 4).parallel_tempering(betas, seed=4, sample_ids=ids, rounds=1, start=start)
    energy = result.energy[..., 0]
    accept = torch.exp((betas[1] - betas[0]) * (energy[:, 1] - energy[:, 0])).clamp(max=1).mean().item()
    assert abs(result.swap_rate.item() - accept) < 4.5 * math.sqrt(0.25 / len(ids))
    for t, beta in enumerate(betas.tolist()):
        assert p_value(-bonds(result.spins[:, t].long()), beta) > 1e-4
        assert p_value(energy[:, 1 - t], beta) < 1e-12  # swapping always would be seen


def test_replicas_do_not_depend_on_the_batch_and_continue_after_a_stop():
    model, betas, ids = Ising(6, 70), [0.3, 0.4, 0.5], torch.tensor([7, 2**40, 0, 3])
    run = dict(betas=betas, seed=1, sweeps=2)
    whole = model.parallel_tempering(sample_ids=ids, rounds=9, **run)
    alone = model.parallel_tempering(sample_ids=ids[1:2], rounds=9, **run)
    assert torch.equal(alone.spins, whole.spins[1:2]) and torch.equal(alone.energy, whole.energy[1:2])
    first = model.parallel_tempering(sample_ids=ids, rounds=4, **run)
    rest = model.parallel_tempering(sample_ids=ids, rounds=5, start=first.spins, first_round=4, **run)
    assert torch.equal(rest.spins, whole.spins)
    assert torch.equal(torch.cat([first.energy, rest.energy], -1), whole.energy)
    assert torch.equal(torch.cat([first.magnetisation, rest.magnetisation], -1), whole.magnetisation)


# A model among models


def test_samples_do_not_depend_on_the_batch_and_continue_after_a_stop():
    model = Ising(10, 34, field=0.1)
    whole = model.sample(torch.arange(257), seed=-3, beta=0.4, sweeps=12)
    assert whole.shape == (257, 10, 34) and whole.dtype == torch.int8
    assert torch.equal(model.sample(torch.tensor([200]), seed=-3, beta=0.4, sweeps=12), whole[200:201])
    first = model.sample(torch.arange(257), seed=-3, beta=0.4, sweeps=5)
    rest = model.sample(torch.arange(257), seed=-3, beta=0.4, sweeps=7, start=first, first_step=5)
    assert torch.equal(rest, whole)


def test_it_saves_loads_and_is_sampled_by_the_engine(tmp_path):
    model = Ising(8, 6, coupling=-1.0, field=0.5, periodic=False, method="metropolis")
    loaded = models.load(model.save(tmp_path / "model"))
    assert type(loaded) is Ising and loaded.config == model.config
    spins = fastgen.sample(loaded, 10, seed=2, batch_size=3, sweeps=20, progress=False)
    assert torch.equal(spins, model.sample(torch.arange(10), seed=2, sweeps=20))
    out = fastgen.sample(model, 10, seed=2, out=tmp_path / "png", format="png", sweeps=20, progress=False)
    assert len(list(out.glob("shard-000000/*.png"))) == 10


def test_starts():
    model, ids = Ising(4, 6), torch.arange(3000)
    assert bool((model.sample(ids, seed=0, sweeps=0, start="up") == 1).all())
    random = model.sample(ids, seed=0, sweeps=0)
    assert abs(random.double().mean().item()) < 4.5 / math.sqrt(random.numel())
    assert not torch.equal(random, model.sample(ids, seed=1, sweeps=0))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(height=0, width=4), "height is 0, wanted at least 1"),
        (dict(height=4, width=4.0), r"width is 4\.0"),
        (dict(height=4, width=5), "4 x 5, wanted even sides"),
        (dict(height=4, width=4, coupling=math.inf), "arguments of Ising"),
        (dict(height=4, width=4, field="a"), "field is 'a', wanted a finite number"),
        (dict(height=4, width=4, coupling=None), "coupling is None, wanted a finite number"),
        (dict(height=4, width=4, method="gibbs"), "method is 'gibbs', wanted 'heat_bath'"),
    ],
)
def test_lattices_that_cannot_be_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Ising(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(beta=math.nan), "beta holds nan"),
        (dict(sweeps=-1), "sweeps is -1"),
        (dict(start="down"), "start is 'down', wanted 'random', 'up'"),
        (
            dict(start=torch.ones(3, 4, 4, dtype=torch.int8)),
            r"start has shape \(3, 4, 4\), wanted \(2, 4, 4\)",
        ),
        (dict(start=torch.zeros(2, 4, 4, dtype=torch.int8)), "spins holds 0"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ising(4, 4).sample(torch.arange(2), seed=0, **arguments)


def test_no_chains_at_all():
    none = Ising(4, 4).parallel_tempering([0.3, 0.4], seed=0, sample_ids=torch.arange(0), rounds=3)
    assert none.spins.shape == (0, 2, 4, 4) and none.spins.dtype == torch.int8
    assert none.magnetisation.shape == none.energy.shape == (0, 2, 3)
    assert none.swap_rate.isnan().all() and none.swap_rate.shape == (1,)


def test_sweeps_and_replicas_refuse_what_they_cannot_use():
    model = Ising(4, 4)
    with pytest.raises(ValueError, match=r"betas is .*, wanted at least 1 finite"):
        model.temperature_sweep([], seed=0)
    with pytest.raises(ValueError, match="chains is 1, wanted at least 2"):
        model.temperature_sweep([0.3], seed=0, chains=1)
    with pytest.raises(ValueError, match="wanted at least 2 finite"):
        model.parallel_tempering([0.3], seed=0)
    with pytest.raises(ValueError, match="wanted at least 2 finite"):
        model.parallel_tempering([0.3, math.nan], seed=0)
    with pytest.raises(ValueError, match="rounds is 0, wanted at least 1"):
        model.parallel_tempering([0.3, 0.4], seed=0, rounds=0)
    with pytest.raises(ValueError, match="start has shape"):
        model.parallel_tempering([0.3, 0.4], seed=0, start=torch.ones(1, 3, 4, 4, dtype=torch.int8))

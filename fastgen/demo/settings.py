"""How much the demo does: `FULL` for a page worth looking at, `QUICK` for a test of a few seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of everything; sweeps and steps are Monte Carlo time."""

    seed: int
    quick: bool
    # the Boltzmann machine
    hidden: int
    epochs: int  # at each of three learning rates
    chain_steps: tuple[int, ...]
    digit_chains: int
    annealing_steps: int
    annealing_chains: int
    # the Ising model
    lattice: int
    lattice_sweeps: int
    curve_sizes: tuple[int, ...]
    curve_temperatures: int
    curve_sweeps: int
    binder_sizes: tuple[int, ...]
    binder_temperatures: int
    binder_chains: int
    binder_sweeps: int
    # the flows
    plane_side: int
    flow_draws: int
    flow_samples: tuple[int, int]
    # the language models
    answer_tokens: int
    verse_characters: int
    # the comparison
    timed_chains: int
    timed_lattice: int
    seconds_a_comparison: float


FULL = Settings(
    seed=0,
    quick=False,
    hidden=512,
    epochs=20,
    chain_steps=(0, 1, 3, 10, 30, 100, 300, 1000, 3000),
    digit_chains=8,
    annealing_steps=5000,
    annealing_chains=100,
    lattice=512,
    lattice_sweeps=20_000,
    curve_sizes=(32, 64, 128),
    curve_temperatures=25,
    curve_sweeps=2000,
    binder_sizes=(16, 32, 64),
    binder_temperatures=9,
    binder_chains=32,
    binder_sweeps=4000,
    plane_side=160,
    flow_draws=8,
    flow_samples=(5, 12),
    answer_tokens=80,
    verse_characters=400,
    timed_chains=256,
    timed_lattice=512,
    seconds_a_comparison=3.0,
)

QUICK = Settings(
    seed=0,
    quick=True,
    hidden=32,
    epochs=1,
    chain_steps=(0, 1, 3),
    digit_chains=2,
    annealing_steps=20,
    annealing_chains=4,
    lattice=32,
    lattice_sweeps=20,
    curve_sizes=(8, 16),
    curve_temperatures=4,
    curve_sweeps=40,
    binder_sizes=(4, 8),
    binder_temperatures=3,
    binder_chains=4,
    binder_sweeps=40,
    plane_side=16,
    flow_draws=1,
    flow_samples=(2, 3),
    answer_tokens=3,
    verse_characters=20,
    timed_chains=32,
    timed_lattice=32,
    seconds_a_comparison=0.05,
)

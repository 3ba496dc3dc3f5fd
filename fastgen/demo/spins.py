"""The Ising model around its critical temperature, held against what is known exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from fastgen.demo.settings import Settings
from fastgen.models import Ising, TemperatureSweep, critical_beta

CRITICAL_TEMPERATURE = 1 / critical_beta()
LATTICE_TEMPERATURES = (0.95, 1.0, 1.05)


@dataclass(frozen=True)
class Spins:
    """What was sampled; temperatures are in units of J.

    Attributes:
        lattices: (3, side, side) int8, at 0.95, 1 and 1.05 times the critical temperature.
        curve: by side of the lattice, over a wide range of temperatures.
        binder: by side of the lattice, close to the critical temperature.
    """

    lattices: Tensor
    curve: dict[int, TemperatureSweep]
    binder: dict[int, TemperatureSweep]


def make(settings: Settings) -> Spins:
    """Sample it all, with a progress bar."""
    with tqdm(total=1 + len(settings.curve_sizes) + len(settings.binder_sizes), unit="lattice size") as bar:
        lattices = _lattices(settings)
        bar.update()
        curve = {
            side: _sweep(side, _curve_temperatures(settings), settings, bar) for side in settings.curve_sizes
        }
        binder = {side: _near(side, settings, bar) for side in settings.binder_sizes}
    return Spins(lattices, curve, binder)


def _lattices(settings: Settings) -> Tensor:
    model = Ising(settings.lattice, settings.lattice)
    beta = critical_beta() / torch.tensor(LATTICE_TEMPERATURES, dtype=torch.float64)
    return model.sample(
        torch.arange(3), seed=settings.seed, beta=beta, sweeps=settings.lattice_sweeps, start="up"
    )


def _curve_temperatures(settings: Settings) -> Tensor:
    return torch.linspace(1.5, 3.2, settings.curve_temperatures, dtype=torch.float64)


def _sweep(side: int, temperatures: Tensor, settings: Settings, bar: tqdm) -> TemperatureSweep:
    result = Ising(side, side).temperature_sweep(
        1 / temperatures,
        seed=settings.seed,
        chains=8,
        sweeps=settings.curve_sweeps,
        burn_in=settings.curve_sweeps // 4,
        start="up",
    )
    bar.update()
    return result


def _near(side: int, settings: Settings, bar: tqdm) -> TemperatureSweep:
    temperatures = CRITICAL_TEMPERATURE * torch.linspace(
        0.97, 1.03, settings.binder_temperatures, dtype=torch.float64
    )
    result = Ising(side, side).temperature_sweep(
        1 / temperatures,
        seed=settings.seed + 1,
        chains=settings.binder_chains,
        sweeps=settings.binder_sweeps,
        burn_in=settings.binder_sweeps // 4,
        start="up",
    )
    bar.update()
    return result

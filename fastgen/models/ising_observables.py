"""What is measured on Ising chains: moments of magnetisation and energy, with errors."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.models.estimates import Estimate, autocorrelation_time, bin_means, jackknife


class TemperatureSweep(NamedTuple):
    """What `Ising.temperature_sweep` returns: float64 (T,) each, of a lattice of N sites.

    The standard errors come from bins of at least 20 autocorrelation times, or of whole chains where those
    are shorter.

    Attributes:
        beta: the inverse temperatures.
        magnetisation: <|m|>, m the mean of the spins.
        energy: <E> / N.
        specific_heat: beta^2 (<E^2> - <E>^2) / N.
        susceptibility: beta N (<m^2> - <|m|>^2).
        binder: 1 - <m^4> / (3 <m^2>^2), 2/3 in the ordered phase, 0 in the disordered one.
        autocorrelation_time: integrated, in sweeps, the longest of those of |m|, m^2 and E.
    """

    beta: Tensor
    magnetisation: Estimate
    energy: Estimate
    specific_heat: Estimate
    susceptibility: Estimate
    binder: Estimate
    autocorrelation_time: Tensor


def binder_cumulant(magnetisation: Tensor) -> Tensor:
    """1 - <m^4> / (3 <m^2>^2), means over the last dimension; the unit of m drops out (Binder 1981)."""
    squared = magnetisation.double() ** 2
    return 1 - (squared**2).mean(-1) / (3 * squared.mean(-1) ** 2)


def observables(beta: Tensor, magnetisation: Tensor, energy: Tensor, sites: int) -> TemperatureSweep:
    """Everything from the traces per site, (chains, T, sweeps) float64."""
    times, rows = [], []
    for t, b in enumerate(beta.tolist()):
        m, e = magnetisation[:, t], energy[:, t]
        times.append(max(autocorrelation_time(trace) for trace in (m.abs(), m**2, e)))
        rows.append(_estimates(b, m, e, times[-1], sites))
    moment, mean, heat, chi, binder = (
        Estimate(torch.stack([row[k].value for row in rows]), torch.stack([row[k].error for row in rows]))
        for k in range(5)
    )
    times_of = torch.tensor(times, dtype=torch.float64)
    return TemperatureSweep(beta, moment, mean, heat, chi, binder, times_of)


def _estimates(beta: float, m: Tensor, e: Tensor, time: float, sites: int) -> list[Estimate]:
    """The five estimates of one temperature from its traces (chains, sweeps)."""
    centre = e.mean()  # so that the variance is no small difference of large numbers
    moments = torch.stack([m.abs(), m**2, m**4, e - centre, (e - centre) ** 2], -1)
    bins = bin_means(moments, time)
    return [
        jackknife(bins, lambda x: x[..., 0]),
        jackknife(bins, lambda x: x[..., 3] + centre),
        jackknife(bins, lambda x: beta**2 * sites * (x[..., 4] - x[..., 3] ** 2)),
        jackknife(bins, lambda x: beta * sites * (x[..., 1] - x[..., 0] ** 2)),
        jackknife(bins, lambda x: 1 - x[..., 2] / (3 * x[..., 1] ** 2)),
    ]

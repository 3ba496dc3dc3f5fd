"""Averages over Markov chains, with standard errors that know of autocorrelation."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A value and its standard error (one sigma)."""

    value: Tensor
    error: Tensor


def autocorrelation_time(trace: Tensor) -> float:
    """Integrated autocorrelation time 1/2 + sum of rho(t), t >= 1, in steps; 1/2 for independent steps.

    The sum ends at the first lag of at least 6 times itself (Sokal 1997, doi:10.1007/978-1-4899-0319-8_6).

    Args:
        trace: (chains, steps) floating, the same observable of the same distribution in every chain.
    """
    steps = trace.shape[1]
    centred = trace.double() - trace.double().mean()
    spectrum = torch.fft.rfft(centred, n=2 * steps)
    covariance = torch.fft.irfft(spectrum.abs() ** 2, n=2 * steps)[:, :steps].mean(0)
    covariance = covariance / torch.arange(steps, 0, -1, dtype=torch.float64, device=trace.device)
    if covariance[0] <= 0:
        return 0.5
    time = 0.5 + torch.cumsum(covariance / covariance[0], 0) - 1.0
    lag = torch.arange(steps, device=trace.device)
    enough = (lag >= 6 * time).nonzero()
    return max(0.5, float(time[enough[0, 0] if len(enough) else -1]))


def bin_means(traces: Tensor, time: float) -> Tensor:
    """Means over bins of at least 20 autocorrelation times, or over whole chains where those are shorter.

    Args:
        traces: (chains, steps, K).
        time: autocorrelation time in steps.

    Returns:
        (bins, K), bins being a multiple of chains; the first steps that fill no bin are left out.
    """
    chains, steps, kinds = traces.shape
    bins = max(1, steps // math.ceil(20 * time))
    length = steps // bins
    kept = traces[:, steps - bins * length :]
    return kept.reshape(chains * bins, length, kinds).mean(1)


def jackknife(bins: Tensor, function: Callable[[Tensor], Tensor]) -> Estimate:
    """A function of means, and its error from leaving out one bin at a time (Efron 1982).

    Args:
        bins: (N, K) means over independent bins of equal length; the error is infinite for N = 1.
        function: takes (..., K), returns (...).
    """
    count, total = len(bins), bins.sum(0)
    value = function(total / count)
    if count < 2:
        return Estimate(value, torch.full_like(value, math.inf))
    without = function((total - bins) / (count - 1))
    error = torch.sqrt((count - 1) * without.var(0, correction=0))
    return Estimate(value, error)

"""Autocorrelation times and standard errors against series whose answers are known."""

import math

import pytest
import torch

from fastgen.models.estimates import autocorrelation_time, bin_means, jackknife


def autoregressive(rho: float, chains: int, steps: int) -> torch.Tensor:
    """x' = rho x + noise, in equilibrium: variance 1, autocorrelation time (1 + rho) / (1 - rho) / 2."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, chains, generator=generator, dtype=torch.float64)
    x = [noise[0]]
    for z in noise[1:]:
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * z)
    return torch.stack(x, 1)


@pytest.mark.parametrize("rho, steps", [(0.0, 2000), (0.5, 2000), (0.9, 4000)])
def test_the_autocorrelation_time_of_an_autoregression(rho, steps):
    wanted = (1 + rho) / (1 - rho) / 2
    # Its relative error is about sqrt(2 (2 M + 1) / n) with the window M = 6 tau (Sokal); 4 of those.
    allowed = 4 * wanted * math.sqrt(2 * (12 * wanted + 1) / (50 * steps))
    assert abs(autocorrelation_time(autoregressive(rho, 50, steps)) - wanted) < allowed


def test_a_constant_series_has_the_shortest_time():
    assert autocorrelation_time(torch.ones(2, 10)) == 0.5


def test_the_error_of_a_correlated_mean_is_the_true_one():
    chains, steps, rho = 200, 2000, 0.9
    x = autoregressive(rho, chains, steps)
    errors = [jackknife(bin_means(row[None, :, None], 9.5), lambda m: m[..., 0]).error.item() for row in x]
    spread = x.mean(1).std().item()  # of 200 chains: known to 5%
    assert spread == pytest.approx(math.sqrt(2 * 9.5 / steps), rel=0.2)
    assert sum(errors) / chains == pytest.approx(spread, rel=0.2)


def test_the_jackknife_error_of_a_ratio_follows_the_delta_method():
    generator = torch.Generator().manual_seed(1)
    bins = torch.tensor([4.0, 2.0]) + 0.1 * torch.randn(5000, 2, generator=generator)
    ratio = jackknife(bins.double(), lambda x: x[..., 0] / x[..., 1])
    assert ratio.value.item() == pytest.approx(2.0, abs=0.01)
    assert ratio.error.item() == pytest.approx(0.1 * math.sqrt(1 / 4 + 4 / 4) / math.sqrt(5000), rel=0.05)


def test_one_bin_has_an_infinite_error():
    assert jackknife(torch.ones(1, 1), lambda x: x[..., 0]).error == math.inf

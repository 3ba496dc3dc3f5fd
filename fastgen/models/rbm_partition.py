"""The partition function of a restricted Boltzmann machine: exactly where it is small, else by annealing."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from fastgen import random
from fastgen.models.estimates import Estimate
from fastgen.ops.rbm_gibbs import rbm_gibbs
from fastgen.random import Stream, as_int

_MOST_UNITS = 24
_CHUNK = 2**12


def exact(weight: Tensor, v_bias: Tensor, h_bias: Tensor, gaussian: bool) -> float:
    """log Z, summed in float64 over the states of the smaller layer; arguments as `annealed`.

    Raises:
        ValueError: that layer (of gaussian visible units, the hidden one) has more than 24 units.
    """
    weight, own, other = weight.double(), v_bias.double(), h_bias.double()
    if gaussian or weight.shape[1] < weight.shape[0]:
        weight, own, other = weight.T, other, own
    units = len(own)
    if units > _MOST_UNITS:
        raise ValueError(f"the smaller layer has {units} units, wanted at most {_MOST_UNITS} to enumerate")
    logs = []
    for first in range(0, 2**units, _CHUNK):
        number = torch.arange(first, min(first + _CHUNK, 2**units), device=weight.device)
        states = ((number[:, None] >> torch.arange(units, device=weight.device)) & 1).double()
        field = states @ weight
        if gaussian:  # the integral of exp(-|v - b|^2 / 2 + v.f) over v
            rest = field @ other + field.square().sum(1) / 2 + len(other) / 2 * math.log(2 * math.pi)
        else:
            rest = functional.softplus(field + other, threshold=40.0).sum(1)
        logs.append(torch.logsumexp(states @ own + rest, 0))
    return torch.logsumexp(torch.stack(logs), 0).item()


def annealed(
    weight: Tensor,
    v_bias: Tensor,
    h_bias: Tensor,
    base_bias: Tensor,
    gaussian: bool,
    *,
    chains: int,
    steps: int,
    seed: int,
) -> Estimate:
    """log Z by annealed importance sampling (Salakhutdinov & Murray 2008, doi:10.1145/1390156.1390266).

    The chains go from independent visible units with the biases `base_bias` (t = 0) to the model (t = 1)
    through machines with the weights t W and biases (1 - t) base_bias + t b and t c, in equal steps of t: on
    machines of MNIST's digits that came closer to log Z than the paper's steps, which are finest near t = 1.

    Args:
        weight: W (V, H); v_bias, base_bias: (V,); h_bias: (H,).
        gaussian: whether the visible units are.
        chains: independent runs, 2 or more.
        steps: distributions on the way, 1 or more.
        seed: 64 bits.

    Returns:
        log of the mean importance weight, and its standard error by the delta method, float64 scalars. Few
        steps give too small a log Z and, with it, too small an error: take more until it no longer rises.
    """
    chains, steps = as_int("chains", chains, 2), as_int("steps", steps, 1)
    path = _Path(weight, v_bias, h_bias, base_bias, gaussian, seed)
    ids, units = torch.arange(chains, device=weight.device), len(path.base)
    if gaussian:
        v = path.base + random.normal(seed, ids, n=units, stream=Stream.RBM_START)
    else:
        v = random.bernoulli(torch.sigmoid(path.base), seed, ids, n=units, stream=Stream.RBM_START).float()
    log_weights = torch.zeros(chains, dtype=torch.float64, device=weight.device)
    for step in range(steps):
        before, t = step / steps, (step + 1) / steps
        log_weights += path.log_ratio(v, before, t)
        v = path.move(v, t, ids, step)
    log_mean, error = _log_mean(log_weights)
    return Estimate(path.log_base() + log_mean, error)


def annealed_back(
    weight: Tensor,
    v_bias: Tensor,
    h_bias: Tensor,
    base_bias: Tensor,
    gaussian: bool,
    v: Tensor,
    *,
    steps: int,
    seed: int,
) -> Estimate:
    """log Z by annealing from the model back to the base rates (Burda, Grosse & Salakhutdinov 2015).

    The path is that of `annealed`, walked from its end; the mean importance weight estimates the base's
    partition function over the model's. If v are samples of the model, the result is more likely too large
    than too small, as that of `annealed` is too small: between the two lies log Z. Samples that miss modes of
    the model, such as data it has not learnt, void that.

    Args:
        weight, v_bias, h_bias, base_bias, gaussian, steps: as `annealed`.
        v: (chains, V) float32, chains >= 2: samples of the model, or near them.
        seed: 64 bits, another than that of the samples, whose draws would come again.

    Returns:
        As `annealed`; few steps give too large a log Z.
    """
    if len(v) < 2:
        raise ValueError(f"v has {len(v)} rows, wanted 2 or more")
    steps = as_int("steps", steps, 1)
    path = _Path(weight, v_bias, h_bias, base_bias, gaussian, seed)
    ids = torch.arange(len(v), device=weight.device)
    log_weights = torch.zeros(len(v), dtype=torch.float64, device=weight.device)
    for step in range(steps):
        before, t = 1 - step / steps, 1 - (step + 1) / steps
        log_weights += path.log_ratio(v, before, t)
        v = path.move(v, t, ids, step)
    log_mean, error = _log_mean(log_weights)
    return Estimate(path.log_base() - log_mean, error)


class _Path:
    """The machines between independent visible units (t = 0) and the model (t = 1)."""

    def __init__(
        self, weight: Tensor, v_bias: Tensor, h_bias: Tensor, base_bias: Tensor, gaussian: bool, seed: int
    ) -> None:
        parameters = (weight, v_bias, h_bias, base_bias)
        self.weight, self.v_bias, self.h_bias, self.base = (x.detach().float() for x in parameters)
        self.gaussian, self.seed = gaussian, seed

    def log_base(self) -> float:
        """log of the partition function at t = 0."""
        units, hidden = self.weight.shape
        if self.gaussian:
            return hidden * math.log(2) + units / 2 * math.log(2 * math.pi)
        return hidden * math.log(2) + functional.softplus(self.base.double()).sum().item()

    def log_ratio(self, v: Tensor, before: float, t: float) -> Tensor:
        """log of the unnormalised p(v) at t over that at `before`, (chains,) float64."""
        field = torch.addmm(self.h_bias, v, self.weight)
        gain = functional.softplus(t * field) - functional.softplus(before * field)
        shift = self.v_bias - self.base
        middle = self.base + (t + before) / 2 * shift if self.gaussian else 0.0
        return gain.double().sum(1) + (t - before) * ((v - middle) @ shift).double()

    def move(self, v: Tensor, t: float, ids: Tensor, step: int) -> Tensor:
        """One step of Gibbs sampling of the machine at t, which is reversible."""
        return rbm_gibbs(
            v,
            None,
            t * self.weight,
            self.base + t * (self.v_bias - self.base),
            t * self.h_bias,
            visible="gaussian" if self.gaussian else "bernoulli",
            seed=self.seed,
            sample_ids=ids,
            first_step=2 * step,
        ).v


def _log_mean(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean of exp(log_weights), and its standard error by the delta method."""
    ratio = torch.exp(log_weights - log_weights.max())
    error = ratio.std() / (ratio.mean() * math.sqrt(len(ratio)))
    return log_weights.max() + torch.log(ratio.mean()), error

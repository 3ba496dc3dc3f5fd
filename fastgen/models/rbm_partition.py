"""The partition function of a restricted Boltzmann machine: exactly where it is small, else by annealing."""

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional

from fastgen import random
from fastgen.models.estimates import Estimate
from fastgen.ops.rbm_gibbs import rbm_gibbs
from fastgen.random import Stream

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
    for name, value, least in (("chains", chains, 2), ("steps", steps, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}, wanted an int of at least {least}")
    weight, v_bias, h_bias, base = (x.detach().float() for x in (weight, v_bias, h_bias, base_bias))
    ids, (units, hidden) = torch.arange(chains, device=weight.device), weight.shape
    if gaussian:
        v = base + random.normal(seed, ids, n=units, stream=Stream.RBM_START)
        log_z = hidden * math.log(2) + units / 2 * math.log(2 * math.pi)
    else:
        v = random.bernoulli(torch.sigmoid(base), seed, ids, n=units, stream=Stream.RBM_START).float()
        log_z = hidden * math.log(2) + functional.softplus(base.double()).sum().item()
    path = [step / steps for step in range(steps + 1)]
    log_weights = torch.zeros(chains, dtype=torch.float64, device=weight.device)
    for step, (before, t) in enumerate(itertools.pairwise(path)):
        field = torch.addmm(h_bias, v, weight)
        gain = functional.softplus(t * field) - functional.softplus(before * field)
        log_weights += gain.double().sum(1)
        middle = base + (t + before) / 2 * (v_bias - base) if gaussian else 0.0
        log_weights += (t - before) * ((v - middle) @ (v_bias - base)).double()
        v = rbm_gibbs(
            v,
            None,
            t * weight,
            base + t * (v_bias - base),
            t * h_bias,
            visible="gaussian" if gaussian else "bernoulli",
            seed=seed,
            sample_ids=ids,
            first_step=2 * step,
        ).v
    ratio = torch.exp(log_weights - log_weights.max())
    log_mean = log_weights.max() + torch.log(ratio.mean())
    return Estimate(log_z + log_mean, ratio.std() / (ratio.mean() * math.sqrt(chains)))

"""How much a flow knows of data it has not seen: nats, and bits per dimension."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgen.models.base import mode
from fastgen.models.flow import Flow
from fastgen.random import as_int, resolve_seed


class Likelihood(NamedTuple):
    """The mean of log p over data points in nats, its standard error, and -log2 p for each number in a point.

    Of grey images both are of probabilities of grey values, bounded by uniform dequantisation from below
    (nats) and from above (bits); a colour is a dimension of its own.
    """

    nats: float
    error: float
    bits_per_dimension: float


@torch.no_grad()
def likelihood(
    flow: Flow, x: Tensor, context: Any = None, *, seed: int = 0, draws: int = 1, batch_size: int = 256
) -> Likelihood:
    """The likelihood of held-out data, in evaluation mode.

    Args:
        flow: the model.
        x: (N, *shape), N >= 2, as for `Flow.log_prob`.
        context: as for `Flow.log_prob`.
        seed: 64 bits, of the dequantisation; the noise of image i and draw d is fixed by (seed, i, d).
        draws: of the noise, averaged for each image; without grey values there is no noise.
        batch_size: points at once; changes no point's result.
    """
    draws, batch_size = as_int("draws", draws, 1), as_int("batch_size", batch_size, 1)
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} data points, wanted at least 2")
    conditions = None if context is None else torch.as_tensor(context, device=x.device)
    one = 0 if flow.class_count else 1  # dimensions of a condition that goes for all
    each = []
    with mode(flow, training=False):
        for ids in torch.arange(len(x), device=x.device).split(batch_size):
            own = conditions if conditions is None or conditions.dim() == one else conditions[ids]
            each.append(_log_prob(flow, x[ids], own, ids, resolve_seed(seed), draws))
    values = torch.cat(each)
    nats = values.mean().item()
    error = values.std().item() / math.sqrt(len(values))
    return Likelihood(nats, error, -nats / (flow.dimensions * math.log(2)))


def _log_prob(flow: Flow, x: Tensor, context: Any, ids: Tensor, seed: int, draws: int) -> Tensor:
    """Log probabilities (N,) float64 of a batch."""
    noisy = flow.dequantization
    if noisy is None or x.is_floating_point():
        return flow.log_prob(x, context).double()
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for draw in range(draws):
        noise = noisy.noise(seed, ids, flow.dimensions, draw).view(x.shape)
        total += flow.log_prob(noisy.place(x, noise), context).double()
    return total / draws - flow.dimensions * math.log(noisy.levels)

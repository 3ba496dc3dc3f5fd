"""One pass of a model, from lists of numbers to logits on the device that the weights are on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen.generation.cache import PagedCache, Pages
from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import transformer


def block_table(pages: Sequence[Pages], device: torch.device) -> Tensor:
    """The pages of sequences as `fastgen.ops.transformer` takes them, (sequences, most pages) int32."""
    widest = max(len(one.numbers) for one in pages)
    rows = [one.numbers + [0] * (widest - len(one.numbers)) for one in pages]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def run_pass(
    weights: TransformerWeights,
    cache: PagedCache,
    tokens: list[int],
    starts: list[int],
    lengths: list[int],
    table: Tensor,
    wanted: list[int],
) -> Tensor:
    """Logits (wanted, vocabulary); arguments as those of `fastgen.ops.transformer`."""

    def of(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=cache.device)

    return transformer(
        of(tokens), of(starts), of(lengths), table, cache.keys, cache.values, of(wanted), weights
    )

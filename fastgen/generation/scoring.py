"""What the model says of tokens that are given: logits, and log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.generation.cache import PagedCache, Pages
from fastgen.generation.passes import block_table, run_pass
from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import PAGE

_CHUNK = 256  # positions whose logits are in memory at once


def token_logits(weights: TransformerWeights, tokens: Tensor) -> Tensor:
    """Logits (B, L, vocabulary) of the token after each of `tokens` (B, L), int64."""
    rows = [_row_logits(weights, row, 0, len(row), _cache(weights, len(row))) for row in tokens]
    return torch.stack(rows) if rows else torch.empty(0, tokens.shape[1], weights.vocabulary)


def token_log_probs(weights: TransformerWeights, tokens: Tensor) -> Tensor:
    """Log-probabilities (B, L - 1) of tokens 2 .. L of each row of `tokens` (B, L), given those before."""
    found = torch.empty(tokens.shape[0], tokens.shape[1] - 1, device=tokens.device)
    for row, out in zip(tokens, found, strict=True):
        cache = _cache(weights, len(row) - 1)
        for start in range(0, len(row) - 1, _CHUNK):
            end = min(start + _CHUNK, len(row) - 1)
            log_probs = _row_logits(weights, row, start, end, cache).log_softmax(-1)
            out[start:end] = log_probs.gather(-1, row[start + 1 : end + 1, None])[:, 0]
    return found


def _cache(weights: TransformerWeights, length: int) -> PagedCache:
    return PagedCache(weights, -(-length // PAGE))


def _row_logits(weights: TransformerWeights, row: Tensor, start: int, end: int, cache: PagedCache) -> Tensor:
    """Logits after positions start .. end - 1 of one row, whose earlier ones are in the cache."""
    tokens, table = row[start:end].tolist(), block_table([Pages(list(range(cache.pages)))], cache.device)
    return run_pass(weights, cache, tokens, [0, len(tokens)], [end], table, list(range(len(tokens))))

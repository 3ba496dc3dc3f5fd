"""What the model says of tokens that are given: logits, and log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.generation.cache import PagedCache, Pages
from fastgen.generation.passes import block_table, run_pass
from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import PAGE

_LOGITS = 2**24  # in memory at once


@dataclass(frozen=True)
class Score:
    """How probable a text is.

    Attributes:
        tokens: those that were scored.
        log_probs: the natural logarithm of each one's probability, given all before it.
    """

    tokens: list[int]
    log_probs: list[float]

    @property
    def log_prob(self) -> float:
        """Of all tokens together."""
        return sum(self.log_probs)

    @property
    def perplexity(self) -> float:
        """exp of the mean of -log p."""
        return math.exp(-self.log_prob / len(self.log_probs))


def token_logits(weights: TransformerWeights, tokens: Tensor) -> Tensor:
    """Logits (B, L, vocabulary) of the token after each of `tokens` (B, L), int64."""
    found = torch.empty(*tokens.shape, weights.vocabulary, device=tokens.device)
    for row, start, logits in _logits(weights, tokens.tolist(), [0] * len(tokens)):
        found[row, start : start + len(logits)] = logits
    return found


def token_log_probs(
    weights: TransformerWeights, rows: Sequence[Sequence[int]], firsts: Sequence[int]
) -> list[Tensor]:
    """For each row the log-probabilities of its tokens from place `first`, at least 1, on."""
    found = [torch.empty(len(row) - first) for row, first in zip(rows, firsts, strict=True)]
    seen = [row[:-1] for row in rows]  # nothing comes after the last token
    for i, start, logits in _logits(weights, seen, [first - 1 for first in firsts]):
        wanted = torch.tensor(rows[i][start + 1 : start + 1 + len(logits)], device=logits.device)
        place = start + 1 - firsts[i]
        found[i][place : place + len(wanted)] = logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
    return found


def _logits(
    weights: TransformerWeights, rows: Sequence[Sequence[int]], firsts: Sequence[int]
) -> Iterator[tuple[int, int, Tensor]]:
    """Index, place and logits (places, vocabulary) after the tokens of rows, from place `first` on.

    Short rows go through the network together, long ones in parts.
    """
    most = min(max(_LOGITS // weights.vocabulary, 256), 4096)
    for group in _groups([len(row) for row in rows], most):
        pages, count = [], 0
        for row in group:
            needed = -(-len(rows[row]) // PAGE)
            pages.append(Pages(list(range(count, count + needed))))
            count += needed
        cache = PagedCache(weights, count)
        table = block_table(pages, cache.device)
        longest = max(len(rows[row]) for row in group)
        for start in range(0, longest, most):  # more than once for a single row alone
            parts = [rows[row][start : start + most] for row in group]
            starts = [0]
            for part in parts:
                starts.append(starts[-1] + len(part))
            before = [max(0, firsts[row] - start) for row in group]
            wanted = [i for n, a, b in zip(before, starts, starts[1:], strict=False) for i in range(a + n, b)]
            tokens = [token for part in parts for token in part]
            logits = run_pass(weights, cache, tokens, starts, [start + len(p) for p in parts], table, wanted)
            at = 0
            for row, part, skipped in zip(group, parts, before, strict=True):
                kept = max(0, len(part) - skipped)
                if kept:
                    yield row, start + skipped, logits[at : at + kept]
                at += kept


def _groups(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of rows that go together: of `most` tokens in all, or a single one; empty rows are left out."""
    group: list[int] = []
    total = 0
    for place, length in enumerate(lengths):
        if group and total + length > most:
            yield group
            group, total = [], 0
        if length:
            group.append(place)
            total += length
    if group:
        yield group

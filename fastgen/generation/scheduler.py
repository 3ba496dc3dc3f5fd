"""Continuous batching: in every pass the rows that are ready, new ones as soon as others leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.generation.cache import MIN_COPIED, PagedCache, in_common
from fastgen.generation.passes import block_table, run_pass
from fastgen.generation.row import Row
from fastgen.generation.sampling import Sampler
from fastgen.generation.speculative import Drafter, held
from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import PAGE


class Scheduler:
    """Runs rows to their ends, at most `batch_size` at once (Yu et al. 2022, OSDI, "Orca").

    Each pass takes the newest token of every row that decodes and, of prompts, parts of `pass_tokens` tokens
    in all, so that a long prompt does not keep the others waiting. A row enters when a place and all pages it
    may come to need are free, so nothing that has begun is ever put off. What a row draws depends on no
    other.
    """

    def __init__(
        self,
        weights: TransformerWeights,
        cache: PagedCache,
        *,
        seed: int,
        batch_size: int,
        pass_tokens: int,
        drafter: Drafter | None = None,
        draft_tokens: int = 0,
    ) -> None:
        self.weights, self.cache = weights, cache
        self.batch_size, self.pass_tokens = batch_size, pass_tokens
        self.sampler = Sampler(weights.vocabulary, seed)
        self.drafter, self.draft_tokens = drafter, draft_tokens
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self._tabled: list[Row] = []
        self._table = torch.empty(0, 0, dtype=torch.int32)

    def add(self, row: Row) -> None:
        """Put a row at the end of the queue.

        Raises:
            ValueError: it could never have the pages it needs.
        """
        needed = -(-row.positions // PAGE)
        if needed > self.cache.pages:
            has = self.cache.pages * PAGE
            raise ValueError(
                f"sample {row.index} may need {row.positions} positions, but the cache has {has}:"
                " raise cache_positions, or lower max_new_tokens"
            )
        self.waiting.append(row)

    def run(self) -> Iterator[Row]:
        """Give each row each time it has got a token, until all are finished."""
        while self.waiting or self.running:
            self._admit()
            self._guess()
            parts = self._parts()
            logits = self._pass(parts)
            drawing = [row for row, _ in parts if row.pending() <= 0]
            if drawing:
                yield from self._draw(logits, drawing)
                self._leave()

    def close(self) -> None:
        """Leave the rows that are not finished, and give the cache's memory back."""
        for row in self.running:
            self._release(row)
        self.running, self.waiting = [], deque()
        self.cache.close()

    def _admit(self) -> None:
        """Let rows in, in order, except those whose beginning another is computing just now."""
        put_off: list[Row] = []
        while self.waiting and len(self.running) < self.batch_size:
            row = self.waiting[0]
            if self._computed_elsewhere(row):
                put_off.append(self.waiting.popleft())
                continue
            row.pages = self.cache.begin(row.prompt, row.positions)
            if row.pages is None:
                break
            self.running.append(self.waiting.popleft())
        self.waiting.extendleft(reversed(put_off))

    def _computed_elsewhere(self, row: Row) -> bool:
        """Whether to wait one pass will spare computing positions that a running prompt is computing."""
        prefilling = [
            other for other in self.running if other.pages and other.pages.computed < len(other.prompt)
        ]
        if not prefilling:
            return False
        coming = max(in_common(other.prompt, row.prompt[:-1]) for other in prefilling)
        return coming >= MIN_COPIED and coming > self.cache.known(row.prompt)

    def _guess(self) -> None:
        """Let the drafter guess for the rows that decode, no further than they may go."""
        if self.drafter is None:
            return
        rows = [row for row in self.running if row.tokens]
        counts = [min(self.draft_tokens, row.limit - len(row.tokens) - 1) for row in rows]
        for row, guess in zip(rows, self.drafter.guess(rows, counts), strict=True):
            row.guess = guess

    def _draw(self, logits: Tensor, rows: list[Row]) -> Iterator[Row]:
        """Draw a token after each row and each of its guesses; give a row for each token that holds."""
        ahead = [row.guess[:i] for row in rows for i in range(len(row.guess) + 1)]
        tokens, log_probs = self.sampler.draw(
            logits, [row for row in rows for _ in range(len(row.guess) + 1)], ahead
        )
        first = 0
        for row in rows:
            drawn = slice(first, first + len(row.guess) + 1)
            first = drawn.stop
            count = held(row.guess, tokens[drawn])
            for token, log_prob in list(zip(tokens[drawn], log_probs[drawn], strict=True))[:count]:
                row.accept(token, log_prob)
                yield row
                if row.finish_reason is not None:
                    break
            assert row.pages is not None
            row.guess, row.pages.computed = [], row.length - 1

    def _parts(self) -> list[tuple[Row, int]]:
        """The rows of this pass and how many tokens of each: decoding rows first, then prompts in order."""
        parts = [(row, 1 + len(row.guess)) for row in self.running if row.pending() == 1]
        left = self.pass_tokens
        for row in self.running:
            if row.pending() > 1 and left > 0:
                parts.append((row, min(row.pending(), left)))
                left -= parts[-1][1]
        return parts

    def _pass(self, parts: list[tuple[Row, int]]) -> Tensor:
        """Logits of the rows whose tokens are all seen after this pass, in order."""
        tokens: list[int] = []
        wanted: list[int] = []
        starts, lengths = [0], []
        for row, count in parts:
            assert row.pages is not None
            tokens += row.next_tokens(count)
            starts.append(len(tokens))
            row.pages.computed += count
            lengths.append(row.pages.computed)
            if row.pending() <= 0:
                wanted += range(len(tokens) - len(row.guess) - 1, len(tokens))
        table = self._block_table(parts)
        logits = run_pass(self.weights, self.cache, tokens, starts, lengths, table, wanted)
        for row, count in parts:
            if count > 1 and row.pages is not None and not row.tokens:
                self.cache.publish(row.pages, row.prompt)
        return logits

    def _block_table(self, parts: list[tuple[Row, int]]) -> Tensor:
        """Pages of each row (rows, most pages); a row keeps its pages, so only new rows change it."""
        rows = [row for row, _ in parts]
        if rows != self._tabled:
            pages = [row.pages for row in rows if row.pages is not None]
            self._tabled, self._table = rows, block_table(pages, self.cache.device)
        return self._table

    def _leave(self) -> None:
        for row in self.running:
            if row.finish_reason is not None:
                self._release(row)
        self.running = [row for row in self.running if row.finish_reason is None]

    def _release(self, row: Row) -> None:
        if self.drafter is not None:
            self.drafter.forget(row)
        if row.pages is not None:
            self.cache.release(row.pages)
            row.pages = None

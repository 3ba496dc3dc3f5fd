"""Speculative decoding: several guessed tokens are seen in one pass, and the right ones are kept.

What a sequence draws at step t is a function of its logits and of the noise that its sample id and t fix
(`fastgen.ops.sample_logits`). One pass over guesses g_1 .. g_k gives what it would draw after each of them,
and the guesses hold as long as they are what is drawn. So the tokens are those of plain generation, one by
one, at every temperature, whoever guesses: the noise is that of the sequence in any case, and none is spent
on accepting or refusing (drafter-invariant speculative decoding: Daliri, Musco, Suresh 2024,
arXiv:2408.07978). A draft model that draws its guesses with the same noise is right with a probability of at
least (1 - d) / (1 + d), where d is the total variation distance between the two models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fastgen.generation.cache import PagedCache, Pages, in_common
from fastgen.generation.passes import block_table, run_pass
from fastgen.generation.row import Row
from fastgen.generation.sampling import Sampler
from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import PAGE

NGRAMS = (3, 2)  # lengths of the endings that are looked up, longest first


class Drafter(Protocol):
    """Guesses how sequences go on."""

    def guess(self, rows: Sequence[Row], counts: Sequence[int]) -> list[list[int]]:
        """At most counts[i] tokens that may follow those of rows[i]."""

    def forget(self, row: Row) -> None:
        """A row that was guessed for is finished."""


def held(guess: Sequence[int], drawn: Sequence[int]) -> int:
    """How many of `drawn` are tokens of the sequence; drawn[i] is what follows the first i guesses."""
    return in_common(guess, drawn[:-1]) + 1


@dataclass
class Repeats:
    """Tokens of a sequence, and where each of their n-grams came last."""

    tokens: list[int] = field(default_factory=list)
    _after: dict[tuple[int, ...], int] = field(default_factory=dict)

    def extend(self, tokens: Sequence[int]) -> None:
        """Take the next tokens."""
        for token in tokens:
            for n in NGRAMS:
                if len(self.tokens) >= n:
                    self._after[tuple(self.tokens[-n:])] = len(self.tokens)
            self.tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """What followed the last earlier place with the same ending, up to `count` tokens."""
        for n in NGRAMS:
            start = self._after.get(tuple(self.tokens[-n:])) if len(self.tokens) >= n else None
            if start is not None:
                found = self.tokens[start : start + count]
                while len(found) < count:  # the place reaches to the end: what follows repeats itself
                    found.append(found[len(found) - (len(self.tokens) - start)])
                return found
        return []


class Lookup:
    """Guesses that a sequence goes on as it did where its last tokens stood before."""

    def __init__(self) -> None:
        self._repeats: dict[int, Repeats] = {}

    def guess(self, rows: Sequence[Row], counts: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        guesses = []
        for row, count in zip(rows, counts, strict=True):
            repeats = self._repeats.setdefault(row.index, Repeats())
            new = len(repeats.tokens) - len(row.prompt)
            repeats.extend(row.tokens[new:] if new >= 0 else row.prompt + row.tokens)
            guesses.append(repeats.guess(count))
        return guesses

    def forget(self, row: Row) -> None:
        """See `Drafter`."""
        self._repeats.pop(row.index, None)


@dataclass
class _Place:
    """Where a draft model stands in a sequence: its pages, and what it guessed after `known` tokens."""

    pages: Pages
    known: int = 0
    guessed: list[int] = field(default_factory=list)


class DraftModel:
    """Guesses what a smaller model with the same vocabulary draws, with the sequence's own noise."""

    def __init__(self, weights: TransformerWeights, *, seed: int, pages: int) -> None:
        self.weights, self.cache = weights, PagedCache(weights, pages)
        self.sampler = Sampler(weights.vocabulary, seed)
        self._places: dict[int, _Place] = {}

    def guess(self, rows: Sequence[Row], counts: Sequence[int]) -> list[list[int]]:
        """See `Drafter`; no guesses for a row that finds no pages."""
        going = []
        for row, most in zip(rows, counts, strict=True):
            place = self._place(row)
            left = most if self.weights.context is None else self.weights.context + 1 - row.length
            if place is not None and min(most, left) > 0:
                going.append((row, place, min(most, left)))
        while going:
            logits = self._pass([(row, place) for row, place, _ in going])
            drawn, _ = self.sampler.draw(
                logits, [row for row, _, _ in going], [p.guessed for _, p, _ in going]
            )
            for (_, place, _), token in zip(going, drawn, strict=True):
                place.guessed.append(token)
            going = [(row, place, count) for row, place, count in going if len(place.guessed) < count]
        return [self._places[row.index].guessed if row.index in self._places else [] for row in rows]

    def forget(self, row: Row) -> None:
        """See `Drafter`."""
        place = self._places.pop(row.index, None)
        if place is not None:
            self.cache.release(place.pages)

    def _place(self, row: Row) -> _Place | None:
        """The row's place, gone back to the last guess that held."""
        place = self._places.get(row.index)
        if place is None:
            pages = self.cache.begin(row.prompt + row.tokens, row.positions)
            if pages is None:
                return None
            place = self._places[row.index] = _Place(pages)
        came = row.tokens[place.known :]
        seen = len(row.prompt) + place.known + in_common(place.guessed, came)
        place.pages.computed = min(place.pages.computed, seen)
        place.known, place.guessed = len(row.tokens), []
        return place

    def _pass(self, going: Sequence[tuple[Row, _Place]]) -> Tensor:
        """Logits after the last token, or the last guess, of each row."""
        tokens: list[int] = []
        starts, lengths = [0], []
        for row, place in going:
            unseen = place.pages.computed - len(row.prompt)
            after = row.tokens + place.guessed
            tokens += after[unseen:] if unseen >= 0 else row.prompt[unseen:] + after
            starts.append(len(tokens))
            place.pages.computed = len(row.prompt) + len(after)
            lengths.append(place.pages.computed)
        table = block_table([place.pages for _, place in going], self.cache.device)
        last = [start - 1 for start in starts[1:]]
        return run_pass(self.weights, self.cache, tokens, starts, lengths, table, last)


def drafter_of(
    draft: str | TransformerWeights | None,
    vocabulary: int,
    rows: Sequence[Row],
    *,
    seed: int,
    batch_size: int,
) -> Drafter | None:
    """What makes the guesses: "lookup", the weights of a draft model, or None, which is nothing.

    Raises:
        TypeError, ValueError: neither, or a draft model with another vocabulary.
    """
    if draft is None:
        return None
    if draft == "lookup":
        return Lookup()
    if not isinstance(draft, TransformerWeights):
        came = repr(draft) if isinstance(draft, str) else type(draft).__name__
        raise TypeError(f"draft is {came}, wanted 'lookup', a Transformer of fastgen or None")
    if draft.vocabulary != vocabulary:
        raise ValueError(f"draft has a vocabulary of {draft.vocabulary}, wanted {vocabulary} as the model")
    pages = sum(sorted((-(-row.positions // PAGE) for row in rows), reverse=True)[:batch_size])
    return DraftModel(draft, seed=seed, pages=pages)

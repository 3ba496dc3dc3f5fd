"""Beam search: the most probable continuations that a search of a given width finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastgen.generation.cache import PagedCache, Pages
from fastgen.generation.passes import block_table, run_pass
from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import PAGE


@dataclass(frozen=True)
class Hypothesis:
    """Tokens after a prompt, their log-probabilities, and why they end: "end", "length", "" while alive."""

    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    finish_reason: str = ""

    @property
    def log_prob(self) -> float:
        """Of all tokens together."""
        return sum(self.log_probs)

    def score(self, length_penalty: float) -> float:
        """log p / length**length_penalty: 0 compares probabilities, 1 means of log-probabilities."""
        return self.log_prob / max(len(self.tokens), 1) ** length_penalty


@dataclass
class BeamSearch:
    """The search that follows one prompt, as a function of logits.

    Each step looks at the best continuations of all that is alive. Those that end are set aside, if they are
    among the `width` best; of the others the `width` best stay alive. The search is done when `width` have
    ended that score no worse than the best one alive would, ended here, or after `limit` tokens.

    Attributes:
        width: how many stay alive.
        limit: how many tokens may follow the prompt.
        end_tokens: tokens that end a continuation, and belong to it.
        length_penalty: see `Hypothesis.score`.
        alive, ended: hypotheses, best first.
    """

    width: int
    limit: int
    end_tokens: tuple[int, ...] = ()
    length_penalty: float = 1.0
    alive: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    ended: list[Hypothesis] = field(default_factory=list)

    def advance(self, logits: Tensor) -> list[int]:
        """Take logits (alive, vocabulary) after each of `alive`; the parents of those alive now."""
        following: list[Hypothesis] = []
        parents = []
        for rank, (parent, token, log_prob) in enumerate(self._best(logits)):
            before = self.alive[parent]
            tokens, log_probs = (*before.tokens, token), (*before.log_probs, log_prob)
            reason = "end" if token in self.end_tokens else "length" if len(tokens) == self.limit else ""
            hypothesis = Hypothesis(tokens, log_probs, reason)
            if not reason and len(following) < self.width:
                following.append(hypothesis)
                parents.append(parent)
            elif reason and rank < self.width:
                self.ended.append(hypothesis)
        self.alive = following
        self.ended = sorted(self.ended, key=self._score, reverse=True)[: self.width]
        return parents

    @property
    def done(self) -> bool:
        """Whether nothing more is to be found."""
        if not self.alive:
            return True
        return len(self.ended) == self.width and self._score(self.ended[-1]) >= self._score(self.alive[0])

    def _score(self, hypothesis: Hypothesis) -> float:
        return hypothesis.score(self.length_penalty)

    def _best(self, logits: Tensor) -> list[tuple[int, int, float]]:
        """Parent, token and its log-probability of the best continuations, best first.

        As many as leave `width` that do not end, whatever ends.
        """
        log_p = logits.float().log_softmax(-1)
        sums = log_p.double() + torch.tensor([[h.log_prob] for h in self.alive], dtype=torch.float64)
        count = min(self.width * max(2, 1 + len(self.end_tokens)), sums.numel())
        places = sums.flatten().topk(count).indices.tolist()
        found = [divmod(place, log_p.shape[1]) for place in places]
        return [(parent, token, float(log_p[parent, token])) for parent, token in found]


@dataclass
class _Running:
    """A search and the pages of what is alive in it."""

    search: BeamSearch
    pages: list[Pages]


def beam_search(
    weights: TransformerWeights, prompts: Sequence[list[int]], searches: Sequence[BeamSearch], batch_size: int
) -> None:
    """Run the search that follows each prompt to its end, as many at once as `batch_size` sequences allow."""
    at_once = max(1, batch_size // max(search.width for search in searches))
    for first in range(0, len(prompts), at_once):
        group = slice(first, first + at_once)
        _run(weights, prompts[group], searches[group])


def _run(weights: TransformerWeights, prompts: Sequence[list[int]], searches: Sequence[BeamSearch]) -> None:
    positions = [len(p) + s.limit - 1 for p, s in zip(prompts, searches, strict=True)]
    sizes = [-(-n // PAGE) * s.width for n, s in zip(positions, searches, strict=True)]
    cache = PagedCache(weights, sum(sizes))
    running = []
    for prompt, search, most in zip(prompts, searches, positions, strict=True):
        pages = cache.begin(prompt, most)
        assert pages is not None  # the cache was made for all of them
        logits = _logits(weights, cache, [(pages, prompt[pages.computed :])])
        cache.publish(pages, prompt)
        running.append(_Running(search, [pages]))
        _advance(cache, running[-1], logits)
    while going := [r for r in running if not r.search.done]:
        parts = [
            (pages, [h.tokens[-1]]) for r in going for pages, h in zip(r.pages, r.search.alive, strict=True)
        ]
        logits = _logits(weights, cache, parts)
        for r, rows in zip(going, logits.split([len(r.pages) for r in going]), strict=True):
            _advance(cache, r, rows)


def _logits(
    weights: TransformerWeights, cache: PagedCache, parts: Sequence[tuple[Pages, list[int]]]
) -> Tensor:
    """Logits (sequences, vocabulary) after the last of the tokens that each sequence gets now."""
    tokens: list[int] = []
    starts, lengths = [0], []
    for pages, new in parts:
        tokens += new
        starts.append(len(tokens))
        pages.computed += len(new)
        lengths.append(pages.computed)
    table = block_table([pages for pages, _ in parts], cache.device)
    return run_pass(weights, cache, tokens, starts, lengths, table, [start - 1 for start in starts[1:]])


def _advance(cache: PagedCache, running: _Running, logits: Tensor) -> None:
    """One step of a search; each hypothesis takes over the pages of its parent, or a copy of them."""
    parents = running.search.advance(logits)
    before, taken, running.pages = running.pages, set[int](), []
    for i, pages in enumerate(before):
        if i not in parents:
            cache.release(pages)
    for parent in parents:
        pages = before[parent]
        if parent in taken:
            copy = cache.fork(pages, len(pages.numbers) * PAGE)
            assert copy is not None  # those without children were given back
            pages = copy
        taken.add(parent)
        running.pages.append(pages)

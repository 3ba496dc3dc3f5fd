"""Beam search: the most probable continuations that a search of a given width finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastgen.generation.cache import PagedCache, Pages
from fastgen.generation.passes import block_table, run_pass
from fastgen.generation.sampling import Settings, biases, padded
from fastgen.generation.stopping import TextStream
from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import PAGE
from fastgen.reference.sample_logits import penalized


@dataclass(frozen=True)
class Hypothesis:
    """Tokens after a prompt.

    Attributes:
        tokens, log_probs: with their log-probabilities under the model.
        total: what the search goes by: the sum of log-probabilities, of those after penalties and biases
            where there are any.
        finish_reason: "end", "stop", "length"; "" while alive.
        text: their text, where it may end them.
    """

    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    total: float = 0.0
    finish_reason: str = ""
    text: TextStream | None = None

    def score(self, length_penalty: float) -> float:
        """total / length**length_penalty: 0 compares probabilities, 1 means of log-probabilities."""
        return self.total / max(len(self.tokens), 1) ** length_penalty


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
        settings: of which penalties and biases change what is best.
        prompt: its tokens, for the penalties.
        alive, ended: hypotheses, best first; the one it begins with may have a text with stop strings.
    """

    width: int
    limit: int
    end_tokens: tuple[int, ...] = ()
    length_penalty: float = 1.0
    settings: Settings = field(default_factory=Settings)
    prompt: Sequence[int] = ()
    alive: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    ended: list[Hypothesis] = field(default_factory=list)

    def advance(self, logits: Tensor) -> list[int]:
        """Take logits (alive, vocabulary) after each of `alive`; the parents of those alive now."""
        following: list[Hypothesis] = []
        parents = []
        last = len(self.alive[0].tokens) + 1 == self.limit
        for rank, (parent, token, log_prob, total) in enumerate(self._best(logits)):
            if rank >= self.width and (last or len(following) == self.width):
                break
            hypothesis = self._after(self.alive[parent], token, log_prob, total)
            if not hypothesis.finish_reason and len(following) < self.width:
                following.append(hypothesis)
                parents.append(parent)
            elif hypothesis.finish_reason and rank < self.width:
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

    def _after(self, before: Hypothesis, token: int, log_prob: float, total: float) -> Hypothesis:
        """A hypothesis with one more token, and whether that ends it."""
        tokens, text = (*before.tokens, token), before.text
        reason = "end" if token in self.end_tokens else "length" if len(tokens) == self.limit else ""
        if text is not None:
            text = text.copy()
            if reason != "end":
                text.push(token)
            if reason:
                text.finish()
            reason = "stop" if text.stopped else reason
        return Hypothesis(tokens, (*before.log_probs, log_prob), total, reason, text)

    def _best(self, logits: Tensor) -> Iterator[tuple[int, int, float, float]]:
        """Parent, token, its log-probability and the new total of all continuations, best first."""
        log_p = logits.float().log_softmax(-1)
        ranked = self._shaped(logits.float()).log_softmax(-1) if self._shapes else log_p
        before = torch.tensor([[h.total] for h in self.alive], dtype=torch.float64, device=logits.device)
        totals = ranked.double() + before
        flat, seen = totals.flatten(), set[int]()
        count = self.width * max(2, 1 + len(self.end_tokens))  # enough, unless stop strings end many
        while len(seen) < len(flat):
            values, places = flat.topk(min(count, len(flat)))
            for total, place in zip(values.tolist(), places.tolist(), strict=True):
                if total == -torch.inf:
                    return
                if place not in seen:
                    parent, token = divmod(place, log_p.shape[1])
                    yield parent, token, float(log_p[parent, token]), total
            seen.update(places.tolist())
            count *= 8

    @property
    def _shapes(self) -> bool:
        return self.settings.penalises or bool(self.settings.logit_bias)

    def _shaped(self, logits: Tensor) -> Tensor:
        """Logits after biases and penalties, as `fastgen.ops.sample_logits` does it."""
        s, count = self.settings, len(self.alive)
        numbers = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
        return penalized(
            logits,
            [torch.full((count,), x, dtype=torch.float64, device=logits.device) for x in numbers],
            padded([self.prompt] * count, logits.device),
            padded([h.tokens for h in self.alive], logits.device),
            biases([s] * count, logits.shape[1]).to(logits.device),
        )


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

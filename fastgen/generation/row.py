"""A sequence under way, and what is told of it at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastgen.generation.cache import Pages
from fastgen.generation.sampling import Settings
from fastgen.generation.stopping import TextStream


@dataclass(frozen=True)
class Generation:
    """What came of one sample of one prompt.

    Attributes:
        text: what was generated, up to a stop string; None for a model without a tokenizer.
        tokens: ids of all generated tokens, an end token and those of a stop string included.
        log_probs: of each token under the model itself (natural logarithm), or None if not asked for.
        finish_reason: "end" (an end token), "stop" (a stop string) or "length" (max_new_tokens, or the end of
            the model's context).
        prompt: index of its prompt.
        prompt_tokens: how many tokens the prompt has.
        sample_id: what its random numbers belong to.
    """

    text: str | None
    tokens: list[int]
    log_probs: list[float] | None
    finish_reason: str
    prompt: int
    prompt_tokens: int
    sample_id: int


@dataclass(eq=False)
class Row:
    """A sequence that is waiting, running or finished.

    Attributes:
        index: its place in what `generate` returns.
        prompt, tokens: tokens given and generated.
        guess: tokens that may follow, seen in the same pass (speculative decoding).
        limit: how many may be generated.
        stream: makes text while tokens come; None where text is wanted at the end only.
        piece: the text that came with the last token.
    """

    index: int
    prompt: list[int]
    limit: int
    sample_id: int
    settings: Settings
    end_tokens: tuple[int, ...] = ()
    stream: TextStream | None = None
    tokens: list[int] = field(default_factory=list)
    guess: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    piece: str = ""
    pages: Pages | None = None

    @property
    def positions(self) -> int:
        """How many positions of the cache it may come to need: the last token needs none."""
        return len(self.prompt) + self.limit - 1

    @property
    def length(self) -> int:
        """How many tokens it has, given and generated."""
        return len(self.prompt) + len(self.tokens)

    def pending(self) -> int:
        """How many of its tokens the network has not seen."""
        assert self.pages is not None
        return self.length - self.pages.computed

    def next_tokens(self, count: int) -> list[int]:
        """The first `count` tokens that the network has not seen; after its own come the guesses."""
        assert self.pages is not None
        start = self.pages.computed - len(self.prompt)
        if start >= 0:
            return (self.tokens[start:] + self.guess)[:count]
        return self.prompt[start : start + count or None]

    def accept(self, token: int, log_prob: float) -> None:
        """Take a generated token and see whether it ends the sequence."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        if self.stream is not None:
            self.piece = "" if token in self.end_tokens else self.stream.push(token)
        if token in self.end_tokens:
            self.finish_reason = "end"
        elif self.stream is not None and self.stream.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"
        if self.finish_reason is not None and self.stream is not None:
            self.piece += self.stream.finish()
            if self.stream.stopped:
                self.finish_reason = "stop"

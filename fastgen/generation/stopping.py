"""Text as it comes: tokens to characters, and the strings that end a generation."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from fastgen.generation.tokenizer import Tokenizer

_INCOMPLETE = "�"
_LEFT = 3  # tokens that may be bytes of a character whose last one has not come
_WAITING = 16  # tokens without a certain character, after which it is looked for where they may be cut


class TextStream:
    """The text of tokens that come one by one.

    A character whose bytes lie in several tokens comes once it is whole; what may be the beginning of a stop
    string is held back until it is known not to be. A token costs the same however many came before.

    Attributes:
        text: what has come and can no longer change.
        stopped: whether a stop string has come; `text` ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self._special = tokenizer.special_tokens()
        self.text = ""
        self.stopped = False
        self._held = ""
        self._tokens: list[int] = []  # of which the first `_read` are in the text
        self._read = 0

    def copy(self) -> TextStream:
        """A stream that goes on from here by itself."""
        other = copy.copy(self)
        other._tokens = list(self._tokens)
        return other

    def push(self, token: int) -> str:
        """Take a token; the characters that are now certain."""
        if token in self._special or not self.tokenizer.knows(token):
            return ""
        self._tokens.append(token)
        before = self.tokenizer.decode(self._tokens[: self._read])
        after = self.tokenizer.decode(self._tokens)
        if len(after) > len(before) and not after.endswith(_INCOMPLETE):
            return self._go_on(before, after, len(self._tokens))
        cut = self._cut(after) if len(self._tokens) - self._read > _WAITING else None
        return "" if cut is None else self._go_on(before, self.tokenizer.decode(self._tokens[:cut]), cut)

    def finish(self) -> str:
        """No token will come: the characters that were still held back."""
        if self.stopped:
            return ""
        before = self.tokenizer.decode(self._tokens[: self._read])
        piece = self._settle(self.tokenizer.decode(self._tokens)[len(before) :])
        return piece if self.stopped else piece + self._emit(len(self._held))

    def _go_on(self, before: str, after: str, read: int) -> str:
        """Take the text of the first `read` tokens, which was `before`, for certain."""
        # The tokens read last stay, since some decoders treat the first token of a text in a way of its own.
        self._tokens, self._read = self._tokens[self._read :], read - self._read
        return self._settle(after[len(before) :])

    def _cut(self, text: str) -> int | None:
        """How many tokens of an endless run of U+FFFD may be taken as they are decoded now."""
        last = len(self._tokens) - _LEFT
        for cut in range(last, max(last - _LEFT - 1, self._read), -1):
            head = self.tokenizer.decode(self._tokens[:cut])
            behind = self.tokenizer.decode(self._tokens[self._read : cut])
            if behind and text == head + self.tokenizer.decode(self._tokens[self._read :])[len(behind) :]:
                return cut
        return None

    def _settle(self, new: str) -> str:
        self._held += new
        found = [at for at in (self._held.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped = True
            return self._emit(min(found))
        return self._emit(len(self._held) - self._undecided())

    def _emit(self, count: int) -> str:
        piece, self._held = self._held[:count], self._held[count:]
        self.text += piece
        return piece

    def _undecided(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max(map(len, self.stop), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self.stop):
                return count
        return 0

"""Text as it comes: tokens to characters, and the strings that end a generation."""

from __future__ import annotations

from collections.abc import Sequence

from fastgen.generation.tokenizer import Tokenizer

_INCOMPLETE = "�"


class TextStream:
    """The text of tokens that come one by one.

    A character whose bytes lie in several tokens comes once it is whole; what may be the beginning of a stop
    string is held back until it is known not to be.

    Attributes:
        text: what has come and can no longer change.
        stopped: whether a stop string has come; `text` ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.text = ""
        self.stopped = False
        self._held = ""
        self._tokens: list[int] = []
        self._start = self._read = 0  # tokens before `_read` are in the text; decoding begins at `_start`

    def push(self, token: int) -> str:
        """Take a token; the characters that are now certain."""
        self._tokens.append(token)
        before = self.tokenizer.decode(self._tokens[self._start : self._read])
        after = self.tokenizer.decode(self._tokens[self._start :])
        if after.endswith(_INCOMPLETE) or len(after) <= len(before):
            return ""
        # A few tokens back, since some decoders treat the first token of a text in a way of its own.
        self._start, self._read = self._read, len(self._tokens)
        return self._settle(after[len(before) :])

    def finish(self) -> str:
        """No token will come: the characters that were still held back."""
        if self.stopped:
            return ""
        before = self.tokenizer.decode(self._tokens[self._start : self._read])
        after = self.tokenizer.decode(self._tokens[self._start :])
        piece = self._settle(after[len(before) :])
        return piece if self.stopped else piece + self._emit(len(self._held))

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

"""Keys and values of many sequences in pages, which sequences with the same beginning share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import PAGE

MIN_COPIED = 8  # positions; computing fewer costs no more than copying them
_LOOKED_AT = 8  # pages that go on from the same beginning, latest first, compared position by position
_MOST_KEPT = 1 << 28  # bytes
_kept: list[np.ndarray] = []  # memory of the cache that was closed last


@dataclass
class Pages:
    """The pages of one sequence, in order, and how many of its positions they hold already."""

    numbers: list[int]
    computed: int = 0
    _published: int = 0
    _node: int = 0


@dataclass
class _Known:
    """What a page holds: these tokens, after those of the pages that `parent` stands for."""

    node: int
    parent: int
    tokens: tuple[int, ...]


class PagedCache:
    """Pages of 64 positions with reference counts (Kwon et al. 2023, arXiv:2309.06180).

    A page that prompts filled is found again by its tokens and those of all pages before it, as long as
    nothing else needed its memory. Sequences refer to whole pages together; where they part inside a page,
    the positions they have in common are copied. Nothing is ever written to a page that two sequences have.

    Attributes:
        keys, values: (layers, pages, kv_heads, 64, head_size) float32.
    """

    def __init__(self, weights: TransformerWeights, pages: int) -> None:
        self.pages = pages
        shape = (len(weights.layers), pages, weights.kv_heads, PAGE, weights.head_size)
        self.device = weights.embedding.data.device
        self._memory: np.ndarray | None = None
        if self.device.type == "cpu":
            count = 2 * math.prod(shape)
            self._memory = _memory(count)
            both = torch.from_numpy(self._memory[:count]).view(2, *shape)
        else:
            both = torch.zeros(2, *shape, device=self.device)
        self.keys, self.values = both[0], both[1]
        self._references = [0] * pages
        self._free = dict.fromkeys(range(pages))  # ordered: the page that is longest free goes first
        self._known: dict[int, _Known] = {}
        self._full: dict[tuple[int, tuple[int, ...]], int] = {}
        self._after: dict[int, dict[int, None]] = {}
        self._nodes = itertools.count(1)  # 0 stands for the empty beginning

    @property
    def free(self) -> int:
        """How many pages no sequence refers to."""
        return len(self._free)

    def begin(self, tokens: Sequence[int], positions: int) -> Pages | None:
        """Pages for a sequence of up to `positions`, those of a known beginning of `tokens` among them.

        The last token is never taken as known, because its logits are wanted. None if too few are free.
        """
        shared, node, source, common = self._match(tokens)
        wanted = -(-positions // PAGE) - len(shared)
        if wanted > self.free - sum(self._references[page] == 0 for page in shared):
            return None
        for page in shared:
            self._refer(page)
        taken = [self._take(source) for _ in range(wanted)]
        pages = Pages(shared + taken, len(shared) * PAGE, len(shared), node)
        if common >= MIN_COPIED and source is not None:
            self._copy(source, taken[0], common)
            pages.computed += common
        if source in taken:
            self._forget(source)
        return pages

    def known(self, tokens: Sequence[int]) -> int:
        """How many of the first positions of `tokens` `begin` would find."""
        shared, _, _, common = self._match(tokens)
        return len(shared) * PAGE + (common if common >= MIN_COPIED else 0)

    def publish(self, pages: Pages, tokens: Sequence[int]) -> None:
        """Let others find what is computed of `tokens`, and of no more, in these pages."""
        computed = min(pages.computed, len(tokens))
        while pages._published * PAGE < computed:
            start = pages._published * PAGE
            held = tuple(tokens[start : min(start + PAGE, computed)])
            known = self._publish(pages.numbers[pages._published], pages._node, held)
            if len(held) < PAGE:
                return
            pages._node = known
            pages._published += 1

    def fork(self, pages: Pages, positions: int) -> Pages | None:
        """Pages of a second sequence that goes on after what is computed; None if too few are free."""
        whole, common = divmod(pages.computed, PAGE)
        wanted = -(-positions // PAGE) - whole
        if wanted > self.free:
            return None
        for page in pages.numbers[:whole]:
            self._refer(page)
        numbers = pages.numbers[:whole] + [self._take(None) for _ in range(wanted)]
        if common:
            self._copy(pages.numbers[whole], numbers[whole], common)
        return Pages(numbers, pages.computed, whole, pages._node)

    def release(self, pages: Pages) -> None:
        """Give the pages of a sequence back; what they hold can be found until they are used again."""
        for page in pages.numbers:
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free[page] = None
        pages.numbers = []

    def close(self) -> None:
        """Leave the memory to the next cache; this one is at its end.

        Memory that is new comes from the system page by page: 75 MB may take as long as a third of the pass
        that fills them.
        """
        self.keys = self.values = torch.empty(0)
        if self._memory is not None and self._memory.nbytes <= _MOST_KEPT:
            _kept[:] = [self._memory]
        self._memory = None

    def _match(self, tokens: Sequence[int]) -> tuple[list[int], int, int | None, int]:
        """Whole pages known, the node after them, and the page with the most positions in common next."""
        shared: list[int] = []
        node = 0
        last = len(tokens) - 1
        while (len(shared) + 1) * PAGE <= last:
            start = len(shared) * PAGE
            page = self._full.get((node, tuple(tokens[start : start + PAGE])))
            if page is None:
                break
            shared.append(page)
            node = self._known[page].node
        rest = tuple(tokens[len(shared) * PAGE : min((len(shared) + 1) * PAGE, last)])
        best: tuple[int, int | None] = (0, None)
        for page in itertools.islice(reversed(self._after.get(node, {})), _LOOKED_AT):
            common = in_common(self._known[page].tokens, rest)
            if common > best[0]:
                best = common, page
        return shared, node, best[1], best[0]

    def _publish(self, page: int, parent: int, tokens: tuple[int, ...]) -> int:
        """Note what a page holds; the node that stands for it, or for the page known to hold the same."""
        whole = len(tokens) == PAGE
        if whole and (parent, tokens) in self._full:
            return self._known[self._full[parent, tokens]].node
        self._forget(page)
        known = _Known(next(self._nodes), parent, tokens)
        self._known[page] = known
        self._after.setdefault(parent, {})[page] = None
        if whole:
            self._full[parent, tokens] = page
        return known.node

    def _forget(self, page: int) -> None:
        known = self._known.pop(page, None)
        if known is None:
            return
        siblings = self._after[known.parent]
        del siblings[page]
        if not siblings:
            del self._after[known.parent]
        if self._full.get((known.parent, known.tokens)) == page:
            del self._full[known.parent, known.tokens]

    def _refer(self, page: int) -> None:
        if self._references[page] == 0:
            del self._free[page]
        self._references[page] += 1

    def _take(self, kept: int | None) -> int:
        """A page for one's own; `kept` is about to be copied from and not taken if another is free."""
        page = next(iter(self._free))
        if page == kept and len(self._free) > 1:
            page = next(itertools.islice(self._free, 1, None))
        if page != kept:
            self._forget(page)
        self._refer(page)
        return page

    def _copy(self, source: int, target: int, positions: int) -> None:
        if source != target:
            for cache in (self.keys, self.values):
                cache[:, target, :, :positions] = cache[:, source, :, :positions]


def _memory(count: int) -> np.ndarray:
    """At least so many float32 numbers: a closed cache's, or new ones, which take no memory yet."""
    try:
        memory = _kept.pop()
    except IndexError:
        memory = np.empty(0, np.float32)
    return memory if len(memory) >= count else np.zeros(count, np.float32)


def in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count

"""The specification of `fastgen.ops.transformer` in plain PyTorch: one sequence after the other."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.reference.linear import ACTIVATIONS
from fastgen.reference.packed_linear import unpack

NORMS = ("rms", "layer")
ROPES = ("none", "half", "interleaved")
FORMATS = {"float32": "f", "bfloat16": "b", "int8": "i", "q4_0": "0", "q4_1": "1", "q8_0": "8"}  # letters
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def transformer(
    tokens: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    block_table: Tensor,
    keys: Tensor,
    values: Tensor,
    wanted: Tensor,
    weights: list[Tensor],
    slots: str,
    sizes: list[int],
    norm: str,
    activation: str,
    rope: str,
    window: int,
    numbers: list[float],
) -> Tensor:
    """See `fastgen.ops.transformer`; `weights` as `TransformerWeights.flat()` lays them out."""
    network = Network(weights, slots, sizes, norm, activation, rope, window, numbers)
    starts = query_starts.tolist()
    rows = [
        network.rows(tokens[a:b], int(length), block_table[s], keys, values)
        for s, ((a, b), length) in enumerate(zip(pairwise(starts), lengths, strict=True))
    ]
    x = torch.cat(rows) if rows else keys.new_empty(0, network.hidden)
    return network.project("head", network.normalize("final", x[wanted]))


class Network:
    """The weights of a transformer under their names, and what its parts compute."""

    def __init__(
        self,
        weights: list[Tensor],
        slots: str,
        sizes: list[int],
        norm: str,
        activation: str,
        rope: str,
        window: int,
        numbers: list[float],
    ) -> None:
        self.vocabulary, self.hidden, self.heads, self.kv_heads, self.head_size, *between = sizes
        self.norm, self.activation, self.rope, self.window = norm, ACTIVATIONS[activation], rope, window
        self.eps, self.scale, self.softcap = numbers
        self.layers = len(between)
        of_layers = [f"{i}.{part}" for i in range(self.layers) for part in ("attention", "mlp")]
        shapes = {"head": (self.vocabulary, self.hidden)}
        width, kv_width = self.heads * self.head_size, self.kv_heads * self.head_size
        for i, middle in enumerate(between):
            outputs = (width, kv_width, kv_width, self.hidden, middle, middle, self.hidden)
            inputs = (*(self.hidden,) * 3, width, self.hidden, self.hidden, middle)
            for name, shape in zip(PROJECTIONS, zip(outputs, inputs, strict=True), strict=True):
                shapes[f"{i}.{name}"] = shape
        self._tensors, self._slots = iter(weights), iter(slots)
        self.embedding = self._matrix((self.vocabulary, self.hidden))
        self.positions, self.cos, self.sin = self._next()[0], self._next()[0], self._next()[0]
        self.norms = {name: (self._next()[0], self._next()[0]) for name in ("final", *of_layers)}
        self.weights = {name: (self._matrix(shape), self._next()[0]) for name, shape in shapes.items()}

    def _next(self) -> tuple[Tensor | None, str]:
        letter = next(self._slots)
        return None if letter == "-" else next(self._tensors), letter

    def _matrix(self, shape: tuple[int, int]) -> Tensor | None:
        (data, letter), (scale, _) = self._next(), self._next()
        if data is None:
            return None
        format = next(name for name, its in FORMATS.items() if its == letter)
        return unpack(data, scale, format, shape, torch.float32)

    def project(self, name: str, x: Tensor) -> Tensor:
        """x W^T + b."""
        weight, bias = self.weights[name]
        assert weight is not None
        return F.linear(x, weight, bias)

    def normalize(self, name: str, x: Tensor) -> Tensor:
        """The norm of that name; biases may be absent."""
        weight, bias = self.norms[name]
        assert weight is not None
        if self.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * weight

    def rotate(self, x: Tensor, at: slice) -> Tensor:
        """Turn pairs of numbers of x (T, heads, head_size) by the angles of their positions."""
        if self.cos is None or self.sin is None:
            return x
        cos, sin = self.cos[at][:, None], self.sin[at][:, None]
        a, b = x.chunk(2, -1) if self.rope == "half" else (x[..., ::2], x[..., 1::2])
        a, b = a * cos - b * sin, b * cos + a * sin
        return torch.cat([a, b], -1) if self.rope == "half" else torch.stack([a, b], -1).flatten(-2)

    def rows(self, tokens: Tensor, length: int, pages: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The new tokens of one sequence through all layers, (T, hidden)."""
        at = slice(length - len(tokens), length)
        assert self.embedding is not None
        x = self.embedding[tokens]
        if self.positions is not None:
            x = x + self.positions[at]
        for i in range(self.layers):
            h = self.normalize(f"{i}.attention", x)
            x = x + self.project(f"{i}.o", self.attend(i, h, at, pages, keys[i], values[i]))
            h = self.normalize(f"{i}.mlp", x)
            if self.weights[f"{i}.gate"][0] is not None:
                between = self.activation(self.project(f"{i}.gate", h)) * self.project(f"{i}.up", h)
            else:
                between = self.activation(self.project(f"{i}.up", h))
            x = x + self.project(f"{i}.down", between)
        return x

    def attend(self, layer: int, h: Tensor, at: slice, pages: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of the rows at those positions, whose keys and values join the cache, (T, width)."""
        of_heads = (self.heads, self.head_size), (self.kv_heads, self.head_size)
        q = self.rotate(self.project(f"{layer}.q", h).unflatten(1, of_heads[0]), at)
        k = self.rotate(self.project(f"{layer}.k", h).unflatten(1, of_heads[1]), at)
        v = self.project(f"{layer}.v", h).unflatten(1, of_heads[1])
        where = torch.arange(at.stop, device=h.device)
        page, place = pages[where // keys.shape[2]].long(), where % keys.shape[2]
        keys[page[at], :, place[at]], values[page[at], :, place[at]] = k, v
        group = self.heads // self.kv_heads
        k, v = (c[page, :, place].repeat_interleave(group, 1) for c in (keys, values))
        scores = torch.einsum("thd,shd->hts", q, k) * self.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        seen = where <= where[at, None]
        if self.window:
            seen &= where > where[at, None] - self.window
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hts,shd->thd", weights, v).flatten(1)

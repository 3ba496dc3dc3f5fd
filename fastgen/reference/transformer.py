"""The specification of `fastgen.ops.transformer` in plain PyTorch: one sequence after the other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.reference.linear import ACTIVATIONS
from fastgen.reference.packed_linear import rounded, unpack

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


@dataclass(frozen=True)
class Matrix:
    """A packed weight as `fastgen.reference.packed_linear` takes it, and the bias that follows it."""

    data: Tensor
    scale: Tensor | None
    format: str
    shape: tuple[int, int]
    bias: Tensor | None = None


class Weights:
    """The weights and numbers of a transformer under their names."""

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
        self.norm, self.activation, self.rope, self.window = norm, activation, rope, window
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
        self.embedding = self._matrix((self.vocabulary, self.hidden), biased=False)
        self.positions, self.cos, self.sin = self._table(), self._table(), self._table()
        self.norms = {name: (self._table(), self._table()) for name in ("final", *of_layers)}
        self.matrices = {name: self._matrix(shape) for name, shape in shapes.items()}

    def _table(self) -> Tensor | None:
        return None if next(self._slots) == "-" else next(self._tensors)

    def _matrix(self, shape: tuple[int, int], biased: bool = True) -> Matrix | None:
        letter = next(self._slots)
        data = None if letter == "-" else next(self._tensors)
        scale, bias = self._table(), self._table() if biased else None
        if data is None:
            return None
        format = next(name for name, its in FORMATS.items() if its == letter)
        return Matrix(data, scale, format, shape, bias)


class Network(Weights):
    """What the parts of a transformer compute."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.activate = ACTIVATIONS[self.activation]
        self.dense = {name: _unpack(matrix) for name, matrix in self.matrices.items() if matrix}
        assert self.embedding is not None
        self.rows_of_tokens = _unpack(self.embedding)[0]

    def project(self, name: str, x: Tensor) -> Tensor:
        """x W^T + b."""
        matrix = self.matrices[name]
        return F.linear(rounded(x) if matrix and matrix.format == "int8" else x, *self.dense[name])

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
        x = self.rows_of_tokens[tokens]
        if self.positions is not None:
            x = x + self.positions[at]
        for i in range(self.layers):
            h = self.normalize(f"{i}.attention", x)
            x = x + self.project(f"{i}.o", self.attend(i, h, at, pages, keys[i], values[i]))
            h = self.normalize(f"{i}.mlp", x)
            if f"{i}.gate" in self.dense:
                between = self.activate(self.project(f"{i}.gate", h)) * self.project(f"{i}.up", h)
            else:
                between = self.activate(self.project(f"{i}.up", h))
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


def _unpack(matrix: Matrix) -> tuple[Tensor, Tensor | None]:
    return unpack(matrix.data, matrix.scale, matrix.format, matrix.shape, torch.float32), matrix.bias

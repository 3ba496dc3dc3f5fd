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
    formats: list[str],
    sizes: list[int],
    norm: str,
    activation: str,
    rope: str,
    window: int,
    numbers: list[float],
) -> Tensor:
    """See `fastgen.ops.transformer`; `weights` as `TransformerWeights.flat()` lays them out."""
    network = Network(weights, formats, sizes, norm, activation, rope, window, numbers)
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
        formats: list[str],
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
        tensors = iter(weights)
        self.embedding = _unpack(next(tensors), next(tensors), formats[0], (self.vocabulary, self.hidden))
        self.positions, self.cos, self.sin = next(tensors), next(tensors), next(tensors)
        self.norms = {name: (next(tensors), next(tensors)) for name in ("final", *of_layers)}
        self.weights: dict[str, tuple[Tensor, Tensor | None]] = {}
        for (name, shape), format in zip(shapes.items(), formats[1:], strict=True):
            data, scale, bias = next(tensors), next(tensors), next(tensors)
            if format:
                self.weights[name] = _unpack(data, scale, format, shape), bias if bias.numel() else None

    def project(self, name: str, x: Tensor) -> Tensor:
        """x W^T + b."""
        return F.linear(x, *self.weights[name])

    def normalize(self, name: str, x: Tensor) -> Tensor:
        """The norm of that name; biases may be absent."""
        weight, bias = self.norms[name]
        if self.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias if bias.numel() else None, self.eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * weight

    def rotate(self, x: Tensor, at: slice) -> Tensor:
        """Turn pairs of numbers of x (T, heads, head_size) by the angles of their positions."""
        if self.rope == "none":
            return x
        cos, sin = self.cos[at][:, None], self.sin[at][:, None]
        a, b = x.chunk(2, -1) if self.rope == "half" else (x[..., ::2], x[..., 1::2])
        a, b = a * cos - b * sin, b * cos + a * sin
        return torch.cat([a, b], -1) if self.rope == "half" else torch.stack([a, b], -1).flatten(-2)

    def rows(self, tokens: Tensor, length: int, pages: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The new tokens of one sequence through all layers, (T, hidden)."""
        at = slice(length - len(tokens), length)
        x = self.embedding[tokens]
        if self.positions.numel():
            x = x + self.positions[at]
        for i in range(self.layers):
            h = self.normalize(f"{i}.attention", x)
            x = x + self.project(f"{i}.o", self.attend(i, h, at, pages, keys[i], values[i]))
            h = self.normalize(f"{i}.mlp", x)
            if f"{i}.gate" in self.weights:
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


def _unpack(data: Tensor, scale: Tensor, format: str, shape: tuple[int, int]) -> Tensor:
    return unpack(data, scale if scale.numel() else None, format, shape, torch.float32)

"""A decoder-only transformer in eager PyTorch, as a user writes it: one dense cache, PyTorch's attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.bench.case import Call, Inputs
from fastgen.ops import Norm, PackedWeight, Projection, TransformerLayer, TransformerWeights


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network and its layout, "llama" or "gpt2"."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    between: int
    vocabulary: int
    context: int
    layout: str = "llama"

    @property
    def head_size(self) -> int:
        """Numbers in a head."""
        return self.hidden // self.heads


def random_weights(
    sizes: Sizes, format: str = "float32", seed: int = 5, device: str = "cpu"
) -> TransformerWeights:
    """Random weights of such a network, its projections packed in `format`."""
    generator = torch.Generator().manual_seed(seed)
    llama, half = sizes.layout == "llama", sizes.head_size // 2

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device)

    def norm() -> Norm:
        weight = 1 + numbers(sizes.hidden, scale=0.1)
        return Norm(weight, None if llama else numbers(sizes.hidden, scale=0.1))

    def projection(outputs: int, inputs: int) -> Projection:
        weight = PackedWeight.pack(numbers(outputs, inputs, scale=inputs**-0.5), format)
        return Projection(weight, None if llama else numbers(outputs, scale=0.1))

    def layer() -> TransformerLayer:
        hidden, between = sizes.hidden, sizes.between
        kv_width = sizes.kv_heads * sizes.head_size
        wide = [(hidden, hidden), (kv_width, hidden), (kv_width, hidden), (hidden, hidden)]
        q, k, v, o = (projection(*shape) for shape in wide)
        gate = projection(between, hidden) if llama else None
        return TransformerLayer(
            norm(), q, k, v, o, norm(), gate, projection(between, hidden), projection(hidden, between)
        )

    rates = 10000.0 ** -(torch.arange(half) / max(half, 1))
    angles = (torch.arange(sizes.context)[:, None] * rates).to(device)
    embedding = PackedWeight.pack(numbers(sizes.vocabulary, sizes.hidden), format)
    return TransformerWeights(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_size=sizes.head_size,
        norm="rms" if llama else "layer",
        eps=1e-5,
        activation="silu" if llama else "gelu_tanh",
        rope="half" if llama else "none",
        embedding=embedding,
        positions=None if llama else numbers(sizes.context, sizes.hidden, scale=0.1),
        cos=angles.cos() if llama else None,
        sin=angles.sin() if llama else None,
        final_norm=norm(),
        head=Projection(embedding),
        layers=tuple(layer() for _ in range(sizes.layers)),
    )


def build(inputs: Inputs) -> Call:
    """The same new tokens of equally long sequences, as one batch through eager PyTorch."""
    weights: TransformerWeights = inputs["weights"]
    lengths, keys, values = inputs["lengths"], inputs["keys"], inputs["values"]
    batch, length = len(lengths), int(lengths[0])
    tokens = inputs["tokens"].view(batch, -1)
    pages = inputs["block_table"].long()
    past = [tuple(_block(c[i], pages) for c in (keys, values)) for i in range(len(weights.layers))]
    network = _Eager(weights)
    sequence = torch.arange(batch, device=tokens.device)
    last = inputs["wanted"] - sequence * tokens.shape[1]
    return lambda: network.forward(tokens, length, past)[sequence, last]


def _block(cache: Tensor, pages: Tensor) -> Tensor:
    """(batch, kv_heads, positions, head_size) of a paged cache."""
    return cache[pages].transpose(1, 2).flatten(2, 3).contiguous()


class _Eager:
    def __init__(self, weights: TransformerWeights) -> None:
        self.weights = weights
        self.dense = {
            id(p): p.weight.unpack()
            for layer in weights.layers
            for p in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
            if p is not None
        }
        self.embedding = weights.embedding.unpack()

    def project(self, x: Tensor, projection: Projection) -> Tensor:
        return F.linear(x, self.dense[id(projection)], projection.bias)

    def normalize(self, x: Tensor, norm: Norm) -> Tensor:
        if self.weights.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, self.weights.eps)
        return F.rms_norm(x, x.shape[-1:], norm.weight, self.weights.eps)

    def rotate(self, x: Tensor, first: int) -> Tensor:
        w = self.weights
        if w.cos is None or w.sin is None:
            return x
        cos, sin = (torch.cat([t[first : first + x.shape[2]]] * 2, -1) for t in (w.cos, w.sin))
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, tokens: Tensor, length: int, past: list[tuple[Tensor, ...]]) -> Tensor:
        w, new = self.weights, tokens.shape[1]
        first = length - new
        x = self.embedding[tokens]
        if w.positions is not None:
            x = x + w.positions[first:length]
        for layer, (keys, values) in zip(w.layers, past, strict=True):
            h = self.normalize(x, layer.attention_norm)
            q, k, v = (
                self.project(h, p).unflatten(-1, (-1, w.head_size)).transpose(1, 2)
                for p in (layer.q, layer.k, layer.v)
            )
            q, k = self.rotate(q, first), self.rotate(k, first)
            keys[:, :, first:length], values[:, :, first:length] = k, v
            seen = torch.ones(new, length, dtype=torch.bool, device=x.device).tril(first)
            attended = F.scaled_dot_product_attention(
                q,
                keys[:, :, :length],
                values[:, :, :length],
                seen if new > 1 else None,
                enable_gqa=w.heads != w.kv_heads,
            )
            x = x + self.project(attended.transpose(1, 2).flatten(2), layer.o)
            h = self.normalize(x, layer.mlp_norm)
            if layer.gate is not None:
                between = F.silu(self.project(h, layer.gate)) * self.project(h, layer.up)
            else:
                between = F.gelu(self.project(h, layer.up), approximate="tanh")
            x = x + self.project(between, layer.down)
        return F.linear(self.normalize(x, w.final_norm), self.embedding)

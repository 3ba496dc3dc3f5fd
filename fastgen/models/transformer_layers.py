"""The parts of `fastgen.models.Transformer`: matrices that are trained or packed, norms, blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.ops import Norm, PackedWeight, Projection, TransformerLayer, packed_linear
from fastgen.reference.linear import ACTIVATIONS
from fastgen.reference.packed_linear import DTYPES, data_shape
from fastgen.stamps import Stamp

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Layout:
    """What the families of transformers differ in."""

    norm: str
    activation: str
    rope: str
    gated: bool
    biases: tuple[str, ...]


LAYOUTS = {
    "llama": Layout("rms", "silu", "half", True, ()),
    "gpt2": Layout("layer", "gelu_tanh", "none", False, ("q", "k", "v", "o", "up", "down")),
}


class Matrix(torch.nn.Module):
    """A linear map: without a format a float32 parameter, with one packed as `PackedWeight` and fixed."""

    weight: torch.nn.Parameter
    data: Tensor
    scale: Tensor

    def __init__(self, outputs: int, inputs: int, *, bias: bool = False, format: str | None = None) -> None:
        super().__init__()
        self.shape, self.format = (outputs, inputs), format
        if format is None:
            self.weight = torch.nn.Parameter(torch.empty(outputs, inputs).normal_(std=0.02))
        else:
            self.register_buffer("data", torch.zeros(data_shape(format, self.shape), dtype=DTYPES[format]))
            if format == "int8":
                self.register_buffer("scale", torch.zeros(outputs))
        self.bias = torch.nn.Parameter(torch.zeros(outputs), requires_grad=format is None) if bias else None
        self._packed: tuple[Stamp, PackedWeight] | None = None

    def packed(self) -> PackedWeight:
        """The weight as the ops take it; a parameter is packed again once it has changed."""
        tensors = [self.weight if self.format is None else self.data]
        if self._packed is None or not self._packed[0].holds(tensors):
            self._packed = Stamp(tensors), self._pack()
        return self._packed[1]

    def _pack(self) -> PackedWeight:
        if self.format is None:
            return PackedWeight.pack(self.weight.detach(), "float32")
        return PackedWeight(self.data, self.format, self.shape, self.scale if self.format == "int8" else None)

    def projection(self) -> Projection:
        """Weight and bias for `fastgen.ops.transformer`."""
        return Projection(self.packed(), None if self.bias is None else self.bias.detach().float())

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the weight, as an embedding takes them."""
        if self.format is None:
            return self.weight[indices]
        return self.packed().rows(indices.flatten()).view(*indices.shape, self.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """X W^T + b."""
        if self.format is None:
            return F.linear(x, self.weight, self.bias)
        return packed_linear(x.flatten(0, -2), self.packed(), self.bias).view(*x.shape[:-1], self.shape[0])


class Normalization(torch.nn.Module):
    """An RMS norm (Zhang and Sennrich 2019) or a layer norm (Ba et al. 2016) of the last dimension."""

    def __init__(self, size: int, kind: str, eps: float, *, trained: bool) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = torch.nn.Parameter(torch.ones(size), requires_grad=trained)
        self.bias = torch.nn.Parameter(torch.zeros(size), requires_grad=trained) if kind == "layer" else None

    def norm(self) -> Norm:
        """Its numbers for `fastgen.ops.transformer`."""
        return Norm(self.weight.detach().float(), None if self.bias is None else self.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """Rows of x normalised."""
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Block(torch.nn.Module):
    """x += o(attention(norm(x))); x += down(activation(gate(norm(x))) * up(norm(x)))."""

    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    up: Matrix
    down: Matrix
    gate: Matrix  # where the layout is gated

    def __init__(
        self,
        layout: Layout,
        *,
        hidden: int,
        mlp: int,
        heads: int,
        kv_heads: int,
        head_size: int,
        eps: float,
        window: int | None,
        depth: int,
        biases: list[str],
        formats: dict[str, str],
    ) -> None:
        super().__init__()
        self.layout, self.heads, self.kv_heads, self.head_size = layout, heads, kv_heads, head_size
        self.window = window
        width, kv_width = heads * head_size, kv_heads * head_size
        shapes = {
            "q": (width, hidden),
            "k": (kv_width, hidden),
            "v": (kv_width, hidden),
            "o": (hidden, width),
        }
        shapes |= {"gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp)}
        if not layout.gated:
            del shapes["gate"]
        trained = not formats
        self.attention_norm = Normalization(hidden, layout.norm, eps, trained=trained)
        self.mlp_norm = Normalization(hidden, layout.norm, eps, trained=trained)
        for name, (outputs, inputs) in shapes.items():
            matrix = Matrix(outputs, inputs, bias=name in biases, format=formats.get(name))
            setattr(self, name, matrix)
            if name in ("o", "down") and matrix.format is None:
                torch.nn.init.normal_(matrix.weight, std=0.02 / math.sqrt(2 * depth))

    def layer(self) -> TransformerLayer:
        """Its numbers for `fastgen.ops.transformer`."""
        return TransformerLayer(
            attention_norm=self.attention_norm.norm(),
            q=self.q.projection(),
            k=self.k.projection(),
            v=self.v.projection(),
            o=self.o.projection(),
            mlp_norm=self.mlp_norm.norm(),
            gate=self.gate.projection() if self.layout.gated else None,
            up=self.up.projection(),
            down=self.down.projection(),
        )

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None, interleaved: bool) -> Tensor:
        """Rows x (B, L, hidden) of L positions that see what came before them."""
        x = x + self.o(self._attend(self.attention_norm(x), cos, sin, interleaved))
        h = self.mlp_norm(x)
        activation = ACTIVATIONS[self.layout.activation]
        between = activation(self.gate(h)) * self.up(h) if self.layout.gated else activation(self.up(h))
        return x + self.down(between)

    def _attend(self, h: Tensor, cos: Tensor | None, sin: Tensor | None, interleaved: bool) -> Tensor:
        heads = (-1, self.head_size)
        q, k, v = (part(h).unflatten(-1, heads).transpose(1, 2) for part in (self.q, self.k, self.v))
        if cos is not None and sin is not None:
            q, k = (rotate(x, cos, sin, interleaved) for x in (q, k))
        mask, length = None, h.shape[1]
        if self.window is not None and self.window < length:
            mask = torch.ones(length, length, dtype=torch.bool, device=h.device).tril().triu(1 - self.window)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn pairs of numbers of x (..., L, D) by the angles of L positions; see `rope_tables`."""
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    a, b = a * cos - b * sin, b * cos + a * sin
    return torch.stack([a, b], -1).flatten(-2) if interleaved else torch.cat([a, b], -1)

"""The weights of the op `transformer`: what a decoder-only network multiplies with, and its layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgen.ops._packed_weight import PackedWeight
from fastgen.reference import transformer as reference
from fastgen.reference.linear import ACTIVATIONS


@dataclass(frozen=True)
class Norm:
    """Weight (hidden,) of an RMS norm, or weight and bias of a layer norm; float32."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Projection:
    """A packed weight (out, in) and its bias (out,), float32."""

    weight: PackedWeight
    bias: Tensor | None = None


@dataclass(frozen=True)
class TransformerLayer:
    """What one layer multiplies with; `gate` is None where the network between is not gated."""

    attention_norm: Norm
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    mlp_norm: Norm
    gate: Projection | None
    up: Projection
    down: Projection


@dataclass(frozen=True)
class TransformerWeights:
    """A decoder-only transformer: pre-norm, causal, with grouped query heads.

    A layer is x += o(attention(norm(x))), x += down(activation(gate(norm(x))) * up(norm(x))), and without a
    gate x += down(activation(up(norm(x)))).

    Attributes:
        heads, kv_heads, head_size: query heads, key and value heads (a divisor of heads), numbers in each.
        norm: "rms" or "layer"; `eps` is added to the mean square, or variance.
        activation: a name of `fastgen.ops.linear`'s.
        rope: "none", "half" (pairs i and i + head_size / 2) or "interleaved" (pairs 2i and 2i + 1).
        embedding: (vocabulary, hidden).
        positions: (context, hidden) float32, learned and added to the embedding, or None.
        cos, sin: (context, head_size / 2) float32 of each position's angles, or None where rope is "none".
        final_norm, head: what turns the last layer's rows into logits (vocabulary,).
        scale: of the attention's scores; None is head_size ** -0.5.
        softcap: scores become softcap * tanh(score / softcap); None leaves them.
        window: a position sees this many positions, its own being the last; None is all.
    """

    heads: int
    kv_heads: int
    head_size: int
    norm: str
    eps: float
    activation: str
    rope: str
    embedding: PackedWeight
    positions: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    final_norm: Norm
    head: Projection
    layers: tuple[TransformerLayer, ...]
    scale: float | None = None
    softcap: float | None = None
    window: int | None = None

    @property
    def hidden(self) -> int:
        """Numbers in a row of the network."""
        return self.embedding.shape[1]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.embedding.shape[0]

    @property
    def context(self) -> int | None:
        """How many positions the tables hold; None where nothing limits them."""
        table = self.positions if self.positions is not None else self.cos
        return None if table is None else table.shape[0]

    def flat(self) -> tuple[Any, ...]:
        """What the dispatcher takes: tensors, what each slot holds, sizes, layout, numbers.

        A slot's letter is a format of `fastgen.reference.transformer`, "t" for a float32 table, or "-" for
        what is absent and has no tensor.
        """
        if "_flat" not in self.__dict__:
            object.__setattr__(self, "_flat", _flatten(self))
        flat: tuple[Any, ...] = self.__dict__["_flat"]
        return flat


def _projections(weights: TransformerWeights) -> Iterator[tuple[str, Projection | None, int, int]]:
    """Every projection with its name and its wanted shape, in the order the op takes them."""
    width, kv_width = weights.heads * weights.head_size, weights.kv_heads * weights.head_size
    hidden = weights.hidden
    yield "head", weights.head, weights.vocabulary, hidden
    for i, layer in enumerate(weights.layers):
        between = layer.up.weight.shape[0]
        yield f"layers[{i}].q", layer.q, width, hidden
        yield f"layers[{i}].k", layer.k, kv_width, hidden
        yield f"layers[{i}].v", layer.v, kv_width, hidden
        yield f"layers[{i}].o", layer.o, hidden, width
        yield f"layers[{i}].gate", layer.gate, between, hidden
        yield f"layers[{i}].up", layer.up, between, hidden
        yield f"layers[{i}].down", layer.down, hidden, between


def _norms(weights: TransformerWeights) -> Iterator[tuple[str, Norm]]:
    yield "final_norm", weights.final_norm
    for i, layer in enumerate(weights.layers):
        yield f"layers[{i}].attention_norm", layer.attention_norm
        yield f"layers[{i}].mlp_norm", layer.mlp_norm


def _flatten(weights: TransformerWeights) -> tuple[Any, ...]:
    _check_weights(weights)
    embedding, letters = weights.embedding, reference.FORMATS
    slots: list[tuple[Tensor | None, str]] = [(embedding.data, letters[embedding.format])]
    slots += [(t, "t") for t in (embedding.scale, weights.positions, weights.cos, weights.sin)]
    for _, norm in _norms(weights):
        slots += [(norm.weight, "t"), (norm.bias, "t")]
    for _, projection, _, _ in _projections(weights):
        if projection is None:
            slots += [(None, "")] * 3
        else:
            slots.append((projection.weight.data, letters[projection.weight.format]))
            slots += [(projection.weight.scale, "t"), (projection.bias, "t")]
    between = [layer.up.weight.shape[0] for layer in weights.layers]
    scale = weights.head_size**-0.5 if weights.scale is None else weights.scale
    return (
        [tensor for tensor, _ in slots if tensor is not None],
        "".join("-" if tensor is None else letter for tensor, letter in slots),
        [weights.vocabulary, weights.hidden, weights.heads, weights.kv_heads, weights.head_size, *between],
        weights.norm,
        weights.activation,
        weights.rope,
        weights.window or 0,
        [weights.eps, scale, weights.softcap or 0.0],
    )


def _check_weights(weights: TransformerWeights) -> None:
    _check_layout(weights)
    for name, projection, outputs, inputs in _projections(weights):
        if projection is None:
            continue
        if projection.weight.shape != (outputs, inputs):
            came = tuple(projection.weight.shape)
            raise ValueError(f"{name} has shape {came}, wanted {(outputs, inputs)}")
        _check_table(f"{name}'s bias", projection.bias, (outputs,))
    for name, norm in _norms(weights):
        _check_table(f"{name}'s weight", norm.weight, (weights.hidden,))
        _check_table(f"{name}'s bias", norm.bias, (weights.hidden,))
    context = weights.context or 0
    _check_table("positions", weights.positions, (context, weights.hidden))
    if weights.rope != "none":
        if weights.cos is None or weights.sin is None or weights.head_size % 2:
            raise ValueError(f"rope is {weights.rope!r}, wanted cos, sin and an even head_size with it")
        _check_table("cos", weights.cos, (context, weights.head_size // 2))
        _check_table("sin", weights.sin, (context, weights.head_size // 2))


def _check_layout(weights: TransformerWeights) -> None:
    for name in ("heads", "kv_heads", "head_size"):
        value = getattr(weights, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, wanted a positive int")
    if weights.heads % weights.kv_heads:
        raise ValueError(f"heads is {weights.heads}, wanted a multiple of kv_heads = {weights.kv_heads}")
    for name, choices in (("norm", reference.NORMS), ("rope", reference.ROPES), ("activation", ACTIVATIONS)):
        if getattr(weights, name) not in choices:
            raise ValueError(f"{name} is {getattr(weights, name)!r}, wanted one of {', '.join(choices)}")
    if weights.window is not None and weights.window < 1:
        raise ValueError(f"window is {weights.window}, wanted a positive int or None")
    if weights.softcap is not None and not weights.softcap > 0:
        raise ValueError(f"softcap is {weights.softcap}, wanted a positive number or None")


def _check_table(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is None:
        return
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        raise TypeError(f"{name} is {tensor.dtype}, wanted a contiguous float32 tensor")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted {shape}")

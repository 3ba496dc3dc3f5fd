"""The op `transformer`: one pass of a decoder-only transformer over the new tokens of many sequences.

On a GPU it is put together from the ops of its parts, each of which Triton covers: there is no
kernels/transformer.py and no CUDA C++, since a launch there costs little beside a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgen.ops._registry import Op, register
from fastgen.ops.packed_linear import PackedWeight
from fastgen.reference import transformer as reference
from fastgen.reference.linear import ACTIVATIONS

PAGE = 64  # positions of a page of the cache


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
        """What the dispatcher takes: tensors (an empty one for what is absent), formats, sizes, numbers."""
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
    absent = torch.empty(0)
    tensors = [
        weights.embedding.data,
        *(absent if t is None else t for t in (weights.positions, weights.cos, weights.sin)),
    ]
    for _, norm in _norms(weights):
        tensors += [norm.weight, absent if norm.bias is None else norm.bias]
    formats = [weights.embedding.format]
    for _, projection, _, _ in _projections(weights):
        tensors += [absent, absent] if projection is None else [projection.weight.data, absent]
        formats.append("" if projection is None else projection.weight.format)
        if projection is not None and projection.bias is not None:
            tensors[-1] = projection.bias
    between = [layer.up.weight.shape[0] for layer in weights.layers]
    scale = weights.head_size**-0.5 if weights.scale is None else weights.scale
    return (
        tensors,
        formats,
        [weights.vocabulary, weights.hidden, weights.heads, weights.kv_heads, weights.head_size, *between],
        weights.norm,
        weights.activation,
        weights.rope,
        weights.window or 0,
        [weights.eps, scale, weights.softcap or 0.0],
    )


def _check_weights(weights: TransformerWeights) -> None:
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
    hidden, half = weights.hidden, weights.head_size // 2
    for name, projection, outputs, inputs in _projections(weights):
        if projection is None:
            continue
        if projection.weight.shape != (outputs, inputs):
            came = tuple(projection.weight.shape)
            raise ValueError(f"{name} has shape {came}, wanted {(outputs, inputs)}")
        _check_table(f"{name}'s bias", projection.bias, (outputs,))
    for name, norm in _norms(weights):
        _check_table(f"{name}'s weight", norm.weight, (hidden,))
        _check_table(f"{name}'s bias", norm.bias, (hidden,))
    context = weights.context or 0
    _check_table("positions", weights.positions, (context, hidden))
    if weights.rope != "none":
        if weights.cos is None or weights.sin is None or weights.head_size % 2:
            raise ValueError(f"rope is {weights.rope!r}, wanted cos, sin and an even head_size with it")
        _check_table("cos", weights.cos, (context, half))
        _check_table("sin", weights.sin, (context, half))


def _check_table(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is None:
        return
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        raise TypeError(f"{name} is {tensor.dtype}, wanted a contiguous float32 tensor")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted {shape}")


def transformer(
    tokens: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    block_table: Tensor,
    keys: Tensor,
    values: Tensor,
    wanted: Tensor,
    weights: TransformerWeights,
) -> Tensor:
    """Run new tokens of many sequences through a transformer, beside the keys and values of their past.

    One call serves a step of decoding, a prompt, a part of a prompt, and any mixture: sequence s brings the
    tokens query_starts[s] .. query_starts[s + 1] - 1, which are its last ones. Their keys and values are
    written into the cache, whose pages belong to sequences by `block_table`: position p of sequence s lies in
    page block_table[s, p // 64] at p % 64. Pages may be shared by sequences with the same beginning; what
    a call writes must be a page of one sequence only.

    A row of logits has the same bits alone and in any batch, in one pass over the prompt and in several, on
    any pages and with any number of threads. Not differentiable.

    Args:
        tokens: (T,) int64, 0 .. vocabulary - 1.
        query_starts: (S + 1,) int64, ascending from 0 to T.
        lengths: (S,) int64: positions of each sequence with its new tokens; at most `weights.context`.
        block_table: (S, n) int32: pages of each sequence, as many as its length needs; the rest is not read.
        keys, values: (layers, pages, kv_heads, 64, head_size) float32, contiguous; written.
        wanted: (W,) int64: rows of `tokens` whose logits are wanted.
        weights: see `TransformerWeights`.

    Returns:
        Logits (W, vocabulary) float32 of the tokens that follow.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    if not isinstance(weights, TransformerWeights):
        raise TypeError(f"weights is {type(weights).__name__}, wanted a TransformerWeights")
    flat = weights.flat()
    for name, tensor, dtype, dims in (
        ("tokens", tokens, torch.int64, 1),
        ("query_starts", query_starts, torch.int64, 1),
        ("lengths", lengths, torch.int64, 1),
        ("block_table", block_table, torch.int32, 2),
        ("wanted", wanted, torch.int64, 1),
    ):
        _check_index(name, tensor, dtype, dims)
    sequences = lengths.shape[0]
    if query_starts.shape[0] != sequences + 1:
        came = tuple(query_starts.shape)
        raise ValueError(f"query_starts has shape {came}, wanted {(sequences + 1,)}, one more than lengths")
    if block_table.shape[0] != sequences:
        came = tuple(block_table.shape)
        raise ValueError(f"block_table has shape {came}, wanted ({sequences}, n), a row for each of lengths")
    inner = (weights.kv_heads, PAGE, weights.head_size)
    for name, cache in (("keys", keys), ("values", values)):
        if not isinstance(cache, Tensor) or cache.dtype != torch.float32 or not cache.is_contiguous():
            kind = cache.dtype if isinstance(cache, Tensor) else type(cache).__name__
            raise TypeError(f"{name} is {kind}, wanted a contiguous float32 tensor")
        if cache.dim() != 5 or cache.shape[0] != len(weights.layers) or cache.shape[2:] != inner:
            shape = (len(weights.layers), "pages", *inner)
            raise ValueError(f"{name} has shape {tuple(cache.shape)}, wanted {shape}")
    if keys.shape != values.shape:
        raise ValueError(f"values has shape {tuple(values.shape)}, wanted {tuple(keys.shape)} as keys")
    logits: Tensor = torch.ops.fastgen.transformer.default(
        tokens, query_starts, lengths, block_table, keys, values, wanted, *flat
    )
    return logits


def _check_index(name: str, tensor: Tensor, dtype: torch.dtype, dims: int) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} is {kind}, wanted an {str(dtype).removeprefix('torch.')} tensor")
    if tensor.dim() != dims or not tensor.is_contiguous():
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, wanted {dims} contiguous dimension{'s' * (dims > 1)}"
        )


def _check_values(
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
    *rest: Any,
) -> None:
    _check_range("tokens", tokens, sizes[0])
    _check_range("wanted", wanted, tokens.shape[0])
    starts, total = query_starts.tolist(), lengths.tolist()
    if starts[0] != 0 or starts[-1] != len(tokens) or any(a > b for a, b in zip(starts, starts[1:])):
        raise ValueError(f"query_starts is {starts}, wanted ascending numbers from 0 to {len(tokens)}")
    context = max(weights[1].shape[0], weights[2].shape[0]) or None
    for s, length in enumerate(total):
        new = starts[s + 1] - starts[s]
        if length < new or (context is not None and length > context):
            most = "" if context is None else f" to {context}, the positions this model knows"
            raise ValueError(f"lengths[{s}] is {length}, wanted {new} (its new tokens) or more{most}")
        pages = -(-length // PAGE)
        if pages > block_table.shape[1]:
            wide = block_table.shape[1]
            raise ValueError(f"block_table has {wide} columns, wanted {pages} for lengths[{s}] = {length}")
    needed = (lengths + (PAGE - 1)) // PAGE
    columns = torch.arange(block_table.shape[1], device=block_table.device)
    used = block_table[columns < needed[:, None]]
    _check_range("block_table", used, keys.shape[1])


def _check_range(name: str, values: Tensor, below: int) -> None:
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= below):
        bad = values[(values < 0) | (values >= below)][0]
        raise ValueError(f"{name} holds {int(bad)}, wanted 0 to {below - 1}")


def _fake(tokens: Tensor, *arguments: Any) -> Tensor:
    wanted, sizes = arguments[5], arguments[8]
    return tokens.new_empty((wanted.shape[0], sizes[0]), dtype=torch.float32)


def _native(
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
    *rest: Any,
) -> Tensor:
    logits = torch.empty(wanted.shape[0], sizes[0])
    torch.ops.fastgen_native.transformer(
        logits,
        *(tokens, query_starts, lengths, block_table, keys, values, wanted),
        *(weights, [_FORMATS[name] for name in formats], sizes),
        *(reference.NORMS.index(norm), list(ACTIVATIONS).index(activation), reference.ROPES.index(rope)),
        *rest,
    )
    return logits


register(
    Op(
        name="transformer",
        schema=(
            "(Tensor tokens, Tensor query_starts, Tensor lengths, Tensor block_table, Tensor(a!) keys,"
            " Tensor(b!) values, Tensor wanted, Tensor[] weights, str[] formats, SymInt[] sizes, str norm,"
            " str activation, str rope, SymInt window, float[] numbers) -> Tensor"
        ),
        fake=_fake,
        implementations={"reference": reference.transformer, "native": _native},
        check_values=_check_values,
    )
)

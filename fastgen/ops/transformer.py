"""The op `transformer`: one pass of a decoder-only transformer over the new tokens of many sequences.

Triton covers the GPU, where the pass is put together from the kernels of its parts; CUDA C++ would launch the
same ones.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastgen.ops._registry import Op, register
from fastgen.ops._transformer_weights import TransformerWeights
from fastgen.reference import transformer as reference
from fastgen.reference.linear import ACTIVATIONS
from fastgen.reference.packed_linear import rows

PAGE = 64  # positions of a page of the cache
_ACTIVATIONS = tuple(ACTIVATIONS)


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


def _check_indices(
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
    *rest: Any,
) -> None:
    _check_range("tokens", tokens, sizes[0])
    _check_range("wanted", wanted, tokens.shape[0])
    starts, total = query_starts.tolist(), lengths.tolist()
    if starts[0] != 0 or starts[-1] != len(tokens) or any(a > b for a, b in pairwise(starts)):
        raise ValueError(f"query_starts is {starts}, wanted ascending numbers from 0 to {len(tokens)}")
    context = _context(weights, slots)
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


def _context(weights: list[Tensor], slots: str) -> int | None:
    """How many positions the tables know: slot 2 has one row for each, and so has slot 3."""
    present = [i for i, letter in enumerate(slots) if letter != "-"]
    tables = [weights[present.index(slot)].shape[0] for slot in (2, 3) if slot in present]
    return min(tables, default=None)


def _check_range(name: str, values: Tensor, below: int) -> None:
    wrong = values[(values < 0) | (values >= below)]
    if wrong.numel():
        raise ValueError(f"{name} holds {int(wrong[0])}, wanted 0 to {below - 1}")


def _fake(tokens: Tensor, *arguments: Any) -> Tensor:
    wanted, sizes = arguments[5], arguments[8]
    return tokens.new_empty((wanted.shape[0], sizes[0]), dtype=torch.float32)


def _reference(tokens: Tensor, *arguments: Any) -> Tensor:
    _check_indices(tokens, *arguments)
    with torch.autocast(tokens.device.type, enabled=False):
        return reference.transformer(tokens, *arguments)


def _native(tokens: Tensor, *arguments: Any) -> Tensor:
    wanted, sizes, norm, activation, rope = (arguments[i] for i in (5, 8, 9, 10, 11))
    logits = torch.empty(wanted.shape[0], sizes[0], dtype=torch.float32)
    layout = (reference.NORMS.index(norm), _ACTIVATIONS.index(activation), reference.ROPES.index(rope))
    try:
        torch.ops.fastgen_native.transformer(logits, tokens, *arguments[:9], *layout, *arguments[12:])
    except RuntimeError:  # it has looked at every index before it touches anything: now say which is wrong
        _check_indices(tokens, *arguments)
        raise
    return logits


def _triton(tokens: Tensor, *arguments: Any) -> Tensor:
    from fastgen.kernels import transformer as kernels  # noqa: PLC0415  triton is optional

    _check_indices(tokens, *arguments)
    weights = reference.Weights(*arguments[6:])
    embedding = weights.embedding
    assert embedding is not None
    x = rows(embedding.data, embedding.scale, embedding.format, embedding.shape, tokens)
    return kernels.transformer(x, *arguments[:6], weights)


register(
    Op(
        name="transformer",
        schema=(
            "(Tensor tokens, Tensor query_starts, Tensor lengths, Tensor block_table, Tensor(a!) keys,"
            " Tensor(b!) values, Tensor wanted, Tensor[] weights, str slots, SymInt[] sizes, str norm,"
            " str activation, str rope, SymInt window, float[] numbers) -> Tensor"
        ),
        fake=_fake,
        implementations={"reference": _reference, "native": _native, "triton": _triton},
        check_values=lambda *arguments: None,  # each implementation looks at the indices itself
    )
)

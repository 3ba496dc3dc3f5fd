"""The op `decode_attention`: new positions against the cache of keys and values, in one order of arithmetic.

Triton covers the GPU: products of tiles with a softmax between them, and a second kernel that merges splits,
both of which Triton says well; CUDA C++ would say the same in more words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgen.ops._checks import number
from fastgen.ops._registry import Op, direct, register
from fastgen.random import as_int
from fastgen.reference import decode_attention as reference

BLOCK = 64
"""Keys that are weighed together; pages hold a multiple."""

_DTYPES, _INT64, _INT32 = (torch.float32, torch.bfloat16), (torch.int64,), (torch.int32,)


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    block_table: Tensor | None = None,
    query_starts: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Any:
    """softmax(q K^T scale) V of the last positions of each sequence, causally, against its cache.

    The n new positions of a sequence of `length` keys are its positions length - n .. length - 1, and each
    attends to the keys up to its own: causal, aligned at the lower right. Query head h attends to the key
    head h // (Hq / Hkv). Products and sums are float32 (Milakov and Gimelshein 2018, arXiv:1805.02867, for
    the running maximum; Dao et al. 2023, "Flash-Decoding", for the splits).

    A position's bits depend on its query and on the keys and values it attends to, and on nothing else: it
    has them when it is decoded alone, in a prefill, in chunks, in any batch, with any page size and number of
    threads, with AVX2 and AVX-512 (others without FMA). For that, keys are taken in blocks of 64 and splits
    of 512, counted from the sequence's first key, and splits are merged in their order. What lies behind a
    sequence's length or outside the window is not read into any result, be it NaN.

    Args:
        q: (B, Hq, L, D): L new positions of each sequence; or packed, (T, Hq, D), with query_starts.
            float32 or bfloat16.
        keys, values: (B, Hkv, S, D), float32 or bfloat16, with any strides; Hkv divides Hq. Or pages,
            (P, Hkv, page, D) with page a multiple of 64, with block_table.
        lengths: (B,) int64, 0 .. S (with pages: 0 .. n * page): keys each sequence has, the new ones
            included. A position before the first key (length < L) attends to nothing and gives zeros.
        block_table: (B, n) int32: the pages of each sequence in order. Entries behind a sequence's length are
            not looked at.
        query_starts: (B + 1,) int64: sequence b has the rows query_starts[b] .. query_starts[b + 1] - 1 of q.
        scale: finite; None is D**-0.5.
        window: attend to the last `window` >= 1 keys only, the position's own included; None is all.
        softcap: c > 0: scores become c tanh(score / c), after the scale; None leaves them.
        return_lse: return log(sum(exp(score))) too, float32, -inf where nothing is attended to.

    Returns:
        out, in the shape and dtype of q ((B, Hq, L, D) in the strides of (B, L, Hq, D)); with return_lse
        (out, lse), lse (B, Hq, L) or (T, Hq).

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    found = _direct(q, keys, values, lengths, query_starts, block_table, scale, window, softcap)
    if found is not None:
        return found if return_lse else found[0]
    _check_tensors(q, keys, values, lengths, block_table, query_starts)
    scale = q.shape[-1] ** -0.5 if scale is None else number("scale", scale)
    window = None if window is None else as_int("window", window, 1)
    if softcap is not None and (softcap := number("softcap", softcap)) <= 0:
        raise ValueError(f"softcap is {softcap}, wanted a number > 0 or None")
    out, lse = _call(
        _rows(q).contiguous(),
        keys if keys.stride(-1) == 1 else keys.contiguous(),
        values if values.stride(-1) == 1 else values.contiguous(),
        lengths.contiguous(),
        None if query_starts is None else query_starts.contiguous(),
        None if block_table is None else block_table.contiguous(),
        scale,
        window,
        softcap,
    )
    if q.dim() == 3:
        return (out, lse) if return_lse else out
    out = _in_batch(out, q)
    return (out, _in_batch(lse, q)) if return_lse else out


def _rows(q: Tensor) -> Tensor:
    """Queries one position after the other, (T, Hq, D)."""
    if q.dim() == 3:
        return q
    return q.squeeze(2) if q.shape[2] == 1 else q.transpose(1, 2).flatten(0, 1)


def _in_batch(x: Tensor, q: Tensor) -> Tensor:
    """(B L, Hq, ...) as (B, Hq, L, ...)."""
    batch, _, new, _ = q.shape
    return x.unsqueeze(2) if new == 1 else x.unflatten(0, (batch, new)).transpose(1, 2)


def _check_tensors(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    block_table: Tensor | None,
    query_starts: Tensor | None,
) -> None:
    for name, value, dtypes in (
        ("q", q, _DTYPES),
        ("keys", keys, _DTYPES),
        ("values", values, _DTYPES),
        ("lengths", lengths, _INT64),
    ):
        _check_tensor(name, value, dtypes, q)
    if block_table is not None:
        _check_tensor("block_table", block_table, _INT32, q)
    if query_starts is not None:
        _check_tensor("query_starts", query_starts, _INT64, q)
    if lengths.dim() != 1:
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}, wanted (B,)")
    batch = lengths.shape[0]
    _check_queries(q, batch, query_starts)
    _check_cache(q, keys, values, batch, block_table)


def _check_tensor(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...], q: Tensor) -> None:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.dtype not in dtypes:
        came = type(value).__name__ if not isinstance(value, Tensor) else f"{value.dtype}"
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} is {came}, wanted a dense {wanted} tensor")
    if value.device != q.device:
        raise ValueError(f"{name} is on {value.device}, wanted {q.device} as q")


def _check_queries(q: Tensor, batch: int, query_starts: Tensor | None) -> None:
    if query_starts is None:
        if q.dim() != 4 or q.shape[0] != batch:
            raise ValueError(f"q has shape {tuple(q.shape)}, wanted ({batch}, Hq, L, D) for {batch} lengths")
    elif q.dim() != 3:
        raise ValueError(f"q has shape {tuple(q.shape)}, wanted (T, Hq, D) with query_starts")
    elif query_starts.shape != (batch + 1,):
        raise ValueError(
            f"query_starts has shape {tuple(query_starts.shape)}, wanted ({batch + 1},) for {batch} lengths"
        )


def _check_cache(q: Tensor, keys: Tensor, values: Tensor, batch: int, block_table: Tensor | None) -> None:
    width = q.shape[-1]
    if width < 1:
        raise ValueError(f"q has shape {tuple(q.shape)}, wanted heads of at least one number")
    if keys.dim() != 4 or keys.shape[3] != width or (block_table is None and keys.shape[0] != batch):
        wanted = f"({batch}, Hkv, S, {width})" if block_table is None else f"(P, Hkv, page, {width})"
        raise ValueError(f"keys has shape {tuple(keys.shape)}, wanted {wanted} for this q")
    if values.shape != keys.shape or values.dtype != keys.dtype:
        raise ValueError(
            f"values is {values.dtype} of shape {tuple(values.shape)}, wanted {keys.dtype} of "
            f"{tuple(keys.shape)} as keys"
        )
    heads = q.shape[-2] if q.dim() == 3 else q.shape[1]
    if keys.shape[1] < 1 or heads % keys.shape[1]:
        raise ValueError(f"keys has {keys.shape[1]} heads, wanted a number that divides the {heads} of q")
    if block_table is None:
        return
    if block_table.dim() != 2 or block_table.shape[0] != batch:
        raise ValueError(f"block_table has shape {tuple(block_table.shape)}, wanted ({batch}, n)")
    if keys.shape[2] < 1 or keys.shape[2] % BLOCK:
        raise ValueError(f"keys has pages of {keys.shape[2]} keys, wanted a multiple of {BLOCK}")


def _check_values(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    query_starts: Tensor | None,
    block_table: Tensor | None,
    *rest: Any,
) -> None:
    if len(lengths) == 0:
        return
    page = keys.shape[2]
    most = page if block_table is None else block_table.shape[1] * page
    held = lengths.tolist()
    if min(held) < 0 or max(held) > most:
        raise ValueError(f"lengths holds {min(held) if min(held) < 0 else max(held)}, wanted 0 .. {most}")
    if query_starts is not None:
        starts = query_starts.tolist()
        if starts[0] != 0 or starts[-1] != q.shape[0] or sorted(starts) != starts:
            raise ValueError(f"query_starts must rise from 0 to the {q.shape[0]} rows of q")
    if block_table is not None and block_table.numel():
        least, largest = (int(x) for x in torch.aminmax(block_table))
        if least < 0 or largest >= keys.shape[0]:
            _check_pages_in_use(block_table, keys.shape[0], page, lengths)


def _check_pages_in_use(block_table: Tensor, pages: int, page: int, lengths: Tensor) -> None:
    used = torch.arange(block_table.shape[1], device=lengths.device) * page < lengths[:, None]
    wrong = block_table[used & ((block_table < 0) | (block_table >= pages))]
    if len(wrong):
        raise ValueError(f"block_table holds {int(wrong[0])} for a page in use, wanted 0 .. {pages - 1}")


def _fake(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)


def _native(q: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if q.dtype == torch.bfloat16:
        out, lse = _native(q.float(), keys, values, *rest)
        return out.bfloat16(), lse
    *tensors, scale, window, softcap = rest
    out, lse = _fake(q)
    torch.ops.fastgen_native.decode_attention.default(
        out, lse, q, keys, values, *tensors, scale, window or 0, softcap or 0.0
    )
    return out, lse


def _triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import decode_attention as kernels  # noqa: PLC0415  triton is optional

    return kernels.decode_attention(*arguments)


_direct = direct("decode_attention")
_call = register(
    Op(
        name="decode_attention",
        schema="(Tensor q, Tensor keys, Tensor values, Tensor lengths, Tensor? query_starts,"
        " Tensor? block_table, float scale, int? window, float? softcap) -> (Tensor, Tensor)",
        fake=_fake,
        implementations={"reference": reference.decode_attention, "native": _native, "triton": _triton},
        check_values=_check_values,
    )
)

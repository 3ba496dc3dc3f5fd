"""The op `attention`: softmax(q k^T) v in blocks, forward and backward, with masks, biases and windows.

Triton covers the GPU: the work is products of tiles with a map between them, to which CUDA C++ would add
little before it takes the tensor cores' own memory in hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgen.ops._checks import number
from fastgen.ops._registry import Op, register, vjp
from fastgen.random import as_int, resolve_sample_ids, resolve_seed
from fastgen.reference import attention as reference

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_CAUSAL = {None: "none", "upper_left": "upper_left", "lower_right": "lower_right"}
_NUMBERS = {"none": 0, "upper_left": 1, "lower_right": 2}  # of csrc/cpu/attention.h


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: str | None = None,
    window: int | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    query_starts: Tensor | None = None,
    key_starts: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    sample_ids: Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """softmax(scale q k^T + bias) v, without the matrix in memory (Dao 2023, arXiv:2307.08691).

    The bits of a row of the result depend on its query and the keys it sees alone: not on the batch, the
    other queries, the threads, nor on how many masked keys stand before or behind (native; the reference's
    sums are the library's, those of triton go by blocks counted from the first key). Keys are added one
    after the other by FMA; the bits are the same with AVX2 and AVX-512, and others without FMA.

    What is masked never enters, forward or backward, for single elements and whole blocks alike: a key whose
    weight is zero leaves no trace, even where it or its value is NaN or infinite. A key counts as masked
    where its score is -inf, whatever made it so. A query that sees no key gets zeros, an lse of -inf, and
    gradients of zero. Gradients are differentiable in their turn, through the reference.

    Args:
        q: (B, Hq, L, D) float32, bfloat16 or float64, any strides; or packed, (T, Hq, D), with query_starts.
        k: (B, Hkv, S, D), or packed (T', Hkv, D), in the dtype of q. Hq is a multiple of Hkv: each group of
            Hq / Hkv query heads, one after the other, shares a head of keys.
        v: (B, Hkv, S, Dv) or packed (T', Hkv, Dv), in the dtype of q.
        causal: query i sees the keys up to its own place, i ("upper_left", as PyTorch's is_causal) or
            i + S - L ("lower_right": the queries are the last ones); None sees all.
        window: >= 1: only keys less than so many places away from the query's own.
        softcap: c > 0: scores become c tanh(scores / c), before the bias.
        bias: floating, broadcast to (B, Hq, L, S), added to the scores; -inf masks. Not with packed ones.
        mask: bool, broadcast to (B, Hq, L, S), True where a key is seen. Not with packed ones.
        scale: of the products; None is D**-0.5.
        query_starts: (B + 1,) integer: where the packed sequences begin in q, and T; from 0, never falling.
        key_starts: the same of k and v; None is query_starts.
        dropout_p: 0 <= p < 1: weights that are left out, the others divided by 1 - p. Drawn from seed and
            sample_ids in `Stream.DROPOUT`: the same in forward, backward and in any batch.
        seed, sample_ids: 64 bits, or None from torch's generator; (B,) int64, or None for 0 .. B - 1.
        return_lse: return the logarithms of the sums of exponentials as well.

    Returns:
        (B, Hq, L, Dv) or (T, Hq, Dv) in the dtype of q, with dense memory in the order (B, L, Hq, Dv); with
        return_lse also (B, Hq, L) or (T, Hq), float32, or float64 of float64.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    packed = query_starts is not None
    _check_tensors(q, k, v, packed)
    if causal not in _CAUSAL:
        raise ValueError(f"causal is {causal!r}, wanted 'upper_left', 'lower_right' or None")
    window = None if window is None else as_int("window", window, 1)
    if softcap is not None and number("softcap", softcap) <= 0:
        raise ValueError(f"softcap is {softcap}, wanted a number > 0 or None")
    if not 0 <= number("dropout_p", dropout_p) < 1:
        raise ValueError(f"dropout_p is {dropout_p}, wanted 0 <= p < 1")
    query_starts, key_starts = _check_starts(q, k, query_starts, key_starts)
    batch = query_starts.shape[0] - 1 if query_starts is not None else q.shape[0]
    if dropout_p and (q.shape[1] > 2**10 or k.shape[-3 if packed else 2] > 2**reference.HEAD_BITS):
        raise ValueError("q or k is too large for dropout, wanted at most 1024 heads and 2**24 keys")
    out, lse = torch.ops.fastgen.attention.default(
        q,
        k,
        v,
        _check_addend("bias", bias, q, k, packed),
        _check_addend("mask", mask, q, k, packed),
        query_starts,
        key_starts,
        _CAUSAL[causal],
        window or 0,
        float(softcap or 0.0),
        float(q.shape[-1] ** -0.5 if scale is None else number("scale", scale)),
        float(dropout_p),
        resolve_seed(seed) if dropout_p else 0,
        resolve_sample_ids(sample_ids, batch, q.device) if dropout_p else None,
    )
    return (out, lse) if return_lse else out


def _wide(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, packed: bool) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            came = f"{x.layout} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} is {came}, wanted a dense tensor")
        if name == "q" and x.dtype not in _DTYPES:
            raise TypeError(f"q is {x.dtype}, wanted float32, bfloat16 or float64")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} is {x.dtype}, wanted {q.dtype} as q")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, wanted {q.device} as q")
    names = ("(T, Hq, D)", "(T, Hkv, D)", "(T, Hkv, Dv)") if packed else None
    names = names or ("(B, Hq, L, D)", "(B, Hkv, S, D)", "(B, Hkv, S, Dv)")
    heads = 1  # where they stand
    for name, x, wanted in zip("qkv", (q, k, v), names, strict=True):
        if x.dim() != (3 if packed else 4) or x.shape[-1] < 1 or x.shape[heads] < 1:
            remark = " with at least one head and one element"
            raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted {wanted}{remark}")
    if k.shape[-1] != q.shape[-1] or q.shape[heads] % k.shape[heads] or (not packed and len(k) != len(q)):
        rule = f"{names[1]} with the D{'' if packed else ', the B'} and a divisor of the heads of q"
        raise ValueError(f"k has shape {tuple(k.shape)}, wanted {rule}, which has {tuple(q.shape)}")
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"v has shape {tuple(v.shape)}, wanted {(*k.shape[:-1], 'Dv')} as k")


def _check_starts(
    q: Tensor, k: Tensor, query_starts: Tensor | None, key_starts: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if query_starts is None:
        if key_starts is not None:
            raise ValueError("key_starts came without query_starts, wanted both or none")
        return None, None
    if key_starts is None:
        key_starts = query_starts
    for name, x in (("query_starts", query_starts), ("key_starts", key_starts)):
        if not isinstance(x, Tensor) or x.dtype not in (torch.int32, torch.int64):
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} is {came}, wanted an int32 or int64 tensor")
        if x.dim() != 1 or not len(x) or x.shape != query_starts.shape:
            wanted = "(sequences + 1,)" if x is query_starts else f"{tuple(query_starts.shape)}"
            raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted {wanted}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, wanted {q.device} as q")
    return query_starts.long().contiguous(), key_starts.long().contiguous()


def _check_addend(name: str, x: Tensor | None, q: Tensor, k: Tensor, packed: bool) -> Tensor | None:
    """bias or mask with four dimensions, not expanded, and a dtype that the kernels take."""
    if x is None:
        return None
    if packed:
        raise ValueError(f"{name} came with query_starts, wanted one of the two")
    wanted = "bool" if name == "mask" else "floating"
    fits = isinstance(x, Tensor) and x.layout == torch.strided
    if not fits or (x.dtype != torch.bool if name == "mask" else not x.is_floating_point()):
        came = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} is {came}, wanted a dense {wanted} tensor")
    shape = (*q.shape[:3], k.shape[2])
    sides = zip(reversed(x.shape), reversed(shape), strict=False)
    if x.dim() > 4 or any(a != 1 and a != b for a, b in sides):  # noqa: PLR1714  sizes may be symbols
        raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted one that broadcasts to {shape}")
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device}, wanted {q.device} as q")
    x = x[(None,) * (4 - x.dim())]
    return x if name == "mask" else x.to(_wide(q))


def _check_values(*arguments: Any) -> None:
    """Of the starts of packed sequences; any number will do in q, k, v and bias."""
    given = arguments[4:] if len(arguments) > 14 else arguments  # after the gradients and what they go by
    q, k, query_starts, key_starts = given[0], given[1], given[5], given[6]
    if query_starts is None:
        return
    for name, x, starts in (("query_starts", q, query_starts), ("key_starts", k, key_starts)):
        ends = starts.tolist()
        if ends[0] != 0 or ends[-1] != len(x) or any(a > b for a, b in itertools.pairwise(ends)):
            raise ValueError(f"{name} is {ends}, wanted numbers from 0 to {len(x)} that never fall")


def _memory(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Where the result goes, and the sums."""
    if q.dim() == 3:
        shape = q.shape[:2]
        return q.new_empty((*shape, v.shape[2])), q.new_empty(shape, dtype=_wide(q))
    batch, heads, queries, _ = q.shape
    out = q.new_empty((batch, queries, heads, v.shape[3])).transpose(1, 2)
    return out, q.new_empty((batch, heads, queries), dtype=_wide(q))


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _memory(q, v)


def _fake_backward(
    grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias = rest[0]
    dense = [x.new_empty(x.shape) for x in (q, k, v)]
    return dense[0], dense[1], dense[2], q.new_empty(0) if bias is None else bias.new_empty(bias.shape)


def _reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast(arguments[0].device.type, enabled=False):
        return reference.attention(*arguments)


def _reference_backward(*arguments: Any) -> tuple[Tensor, ...]:
    with torch.autocast(arguments[0].device.type, enabled=False):
        return tuple(x.contiguous() for x in reference.attention_backward(*arguments))


def _expanded(q: Tensor, k: Tensor, bias: Tensor | None, mask: Tensor | None) -> tuple[Any, Any]:
    """Bias and mask in the shape of the scores, without a copy."""
    scores = (*q.shape[:3], k.shape[2]) if q.dim() == 4 else ()
    return None if bias is None else bias.expand(scores), None if mask is None else mask.expand(scores)


def _grads(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> list[Tensor | None]:
    """Memory for the gradients of q, k and v, wide, and of every score where there is a bias."""
    dense: list[Tensor | None] = [x.new_empty(x.shape, dtype=_wide(q)) for x in (q, k, v)]
    return [*dense, None if bias is None else bias.new_zeros((*q.shape[:3], k.shape[2]))]


def _narrow(grads: list[Any], q: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    *dense, scores = grads
    of_bias = q.new_empty(0) if bias is None else scores.sum_to_size(bias.shape)
    return *(x.to(q.dtype) for x in dense), of_bias


def _into_result(kernel: Callable[..., None]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`kernel` writes the result and the sums into memory that it is given."""

    def run(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        out, lse = _memory(q, v)
        kernel(out, lse, q, k, v, *_expanded(q, k, bias, mask), *rest)
        return out, lse

    return run


def _into_gradients(kernel: Callable[..., None]) -> Callable[..., tuple[Tensor, ...]]:
    """`kernel` writes the gradients of q, k, v and of every score into memory that it is given."""

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        grad_out, grad_lse, out, lse, q, k, v, bias, mask, *rest = arguments
        grads = _grads(q, k, v, bias)
        kernel(*grads, grad_out, grad_lse, out, lse, q, k, v, *_expanded(q, k, bias, mask), *rest)
        return _narrow(grads, q, bias)

    return run


def _numbered(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments as C++ takes them, `causal` as a number."""
    *before, causal, window, softcap, scale, dropout_p, seed, ids = arguments
    return *before, _NUMBERS[causal], window, softcap, scale, dropout_p, seed, ids


def _native(*arguments: Any) -> None:
    torch.ops.fastgen_native.attention.default(*_numbered(arguments))


def _native_backward(*arguments: Any) -> None:
    torch.ops.fastgen_native.attention_backward.default(*_numbered(arguments))


def _triton(*arguments: Any) -> None:
    from fastgen.kernels import attention as kernels  # noqa: PLC0415  triton is optional

    kernels.attention(*arguments)


def _triton_backward(*arguments: Any) -> None:
    from fastgen.kernels import attention_backward as kernels  # noqa: PLC0415  triton is optional

    kernels.attention_backward(*arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, query_starts, key_starts, causal, window, softcap, scale, p, seed, ids = inputs
    ctx.save_for_backward(*output, *tensors, query_starts, key_starts, ids)
    ctx.options = (causal, window, softcap, scale, p, seed)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    out, lse, q, k, v, bias, mask, query_starts, key_starts, ids = ctx.saved_tensors
    rest = (mask, query_starts, key_starts, *ctx.options, ids)
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        given = (q, k, v) if bias is None else (q, k, v, bias)
        found: tuple[Any, ...] = vjp(
            lambda q, k, v, bias=None: _reference(q, k, v, bias, *rest), given, (grad_out, grad_lse)
        )
    else:
        found = torch.ops.fastgen.attention_backward.default(
            grad_out, grad_lse, out, lse, q, k, v, bias, *rest
        )
    return *found[:3], None if bias is None else found[3], *(None,) * len(rest)


_OPTIONS = (
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, Tensor? query_starts, Tensor? key_starts,"
    " str causal, int window, float softcap, float scale, float dropout_p, int seed, Tensor? sample_ids) -> "
)

register(
    Op(
        name="attention",
        schema="(" + _OPTIONS + "(Tensor, Tensor)",
        fake=_fake,
        implementations={
            "reference": _reference,
            "native": _into_result(_native),
            "triton": _into_result(_triton),
        },
        check_values=_check_values,
        setup_context=_setup_context,
        backward=_backward,
    )
)

register(
    Op(
        name="attention_backward",
        schema="(Tensor grad_out, Tensor grad_lse, Tensor out, Tensor lse, "
        + _OPTIONS
        + "(Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_backward,
        implementations={
            "reference": _reference_backward,
            "native": _into_gradients(_native_backward),
            "triton": _into_gradients(_triton_backward),
        },
        check_values=_check_values,
    )
)

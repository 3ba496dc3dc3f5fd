"""Attention on a GPU: a tile of queries over tiles of keys, with the softmax corrected as the keys go by.

Tiles begin at the first key and the first query and are added in order, so that results do not depend on the
batch. Products of float32 take three passes of TF32; weights meet bfloat16 values as bfloat16. Gradients of q
and of the bias are one kernel, those of k and v another: nothing is added atomically. Dropout draws each word
for all four keys that it serves.
"""

import torch
import triton
import triton.language as tl
from fastgen.kernels.philox import stream_words

DROPOUT = tl.constexpr(33)  # Stream.DROPOUT
WARPS = 8  # of a tile: with four its numbers do not fit their registers


@triton.jit
def product(a, b, DOUBLE: tl.constexpr):
    """a @ b, added in float32 or float64."""
    if DOUBLE:
        return tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def tanh(z):
    """tanh from exp(-2|z|)."""
    e = tl.exp(-2.0 * tl.abs(z))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(z < 0.0, -y, y)


@triton.jit
def not_finite(x):
    """True for NaN and infinities."""
    return x - x != 0.0


@triton.jit
def span(starts, b, length, PACKED: tl.constexpr):
    """Where a sequence begins in packed memory, and its length."""
    if PACKED:
        start = tl.load(starts + b)
        return start, tl.load(starts + b + 1) - start
    return b * 0, length + b * 0


@triton.jit
def load_tile(x, row, column, row_stride, column_stride, rows, columns, WIDEN: tl.constexpr):
    """Numbers of rows and columns; 0 where there are none."""
    here = (row[:, None] < rows) & (column[None, :] < columns)
    tile = tl.load(x + row[:, None] * row_stride + column[None, :] * column_stride, mask=here, other=0.0)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def add_strange(mixed, weights, values, DOUBLE: tl.constexpr):
    """To sums of values what is not finite in them, where it has a weight: fewer than 128 keys of a tile."""
    code = tl.where(values == float("inf"), 1.0, tl.where(values == float("-inf"), 128.0, 16384.0))
    code = tl.where(not_finite(values), code, 0.0)
    seen = tl.where(weights != 0.0, 1.0, 0.0)
    EXACT: tl.constexpr = tl.float32 if DOUBLE else tl.float16
    hits = product(seen.to(EXACT), code.to(EXACT), DOUBLE).to(tl.int32)
    mixed += tl.where(hits % 128 > 0, float("inf"), 0.0)
    mixed += tl.where(hits // 128 % 128 > 0, float("-inf"), 0.0)
    return mixed + tl.where(hits >= 16384, float("nan"), 0.0)


@triton.jit
def score_tile(
    q, k, i, j, queries, keys, bias, mask, bias_row, bias_column, mask_row, mask_column,
    scale, softcap, window,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
    MASK: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Scores, -inf where a key is not seen, and what the soft cap gave before the bias."""
    scores = product(q, tl.trans(k), DOUBLE) * scale
    curved = scores
    if SOFTCAP:
        curved = tanh(scores / softcap)
        scores = softcap * curved
    seen = (i[:, None] < queries) & (j[None, :] < keys)
    place = i + (keys - queries) if CAUSAL == 2 else i
    ahead = j[None, :] - place[:, None]
    if CAUSAL != 0:
        seen &= ahead <= 0
    if WINDOW:
        seen &= (ahead < window) & (ahead > -window)
    if MASK:
        there = i[:, None] * mask_row + j[None, :] * mask_column
        seen &= tl.load(mask + there, mask=seen, other=0) != 0
    if BIAS:
        there = i[:, None] * bias_row + j[None, :] * bias_column
        added = tl.load(bias + there, mask=seen, other=float("-inf"))
        seen &= added != float("-inf")
        scores += tl.where(seen, added, 0.0)
    return tl.where(seen, scores, float("-inf")), curved


@triton.jit
def kept_tile(i, j, head, sample, seed, threshold):
    """1 where dropout leaves a weight."""
    block = (head.to(tl.int64) << 22) + (j[None, :] // 4) + i[:, None] * 0
    step = i[:, None] + j[None, :] * 0
    w0, w1, w2, w3 = stream_words(block, step, sample, DROPOUT, seed)
    word = j[None, :] % 4
    drawn = tl.where(word == 0, w0, tl.where(word == 1, w1, tl.where(word == 2, w2, w3)))
    return (drawn.to(tl.int64) >= threshold).to(tl.float32)


@triton.jit
def key_range(
    first, last, queries, keys, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, N: tl.constexpr
):
    """The keys that queries first .. last - 1 may see, from a whole tile on."""
    shift = keys - queries if CAUSAL == 2 else keys * 0
    begin, end = keys * 0, keys
    if WINDOW:
        begin = tl.maximum(first + shift - window + 1, 0) // N * N
        end = tl.minimum(keys, last - 1 + shift + window)
    if CAUSAL != 0:
        end = tl.minimum(keys, last + shift)
    return begin, tl.maximum(end, 0)


@triton.jit
def attention_kernel(
    q, k, v, bias, mask, query_starts, key_starts, sample_ids, out, lse,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, bias_batch, bias_head, bias_row, bias_column,
    mask_batch, mask_head, mask_row, mask_column, out_batch, out_head, out_row, out_column,
    lse_batch, lse_head, lse_row,
    queries, keys, group, size, value_size, scale, softcap, window, seed, threshold, whole,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
    MASK: tl.constexpr, PACKED: tl.constexpr, KEEP: tl.constexpr, WIDEN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """M queries of a head: the result and the log-sum-exp."""
    head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    DOUBLE: tl.constexpr = q.dtype.element_ty == tl.float64
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    query_start, queries = span(query_starts, b, queries, PACKED)
    key_start, keys = span(key_starts, b, keys, PACKED)
    first = tl.program_id(0).to(tl.int64) * M
    if first < queries:
        i, d, e = first + tl.arange(0, M), tl.arange(0, SIZE), tl.arange(0, VALUES)
        q += b * q_batch + head * q_head + query_start * q_row
        k += b * k_batch + (head // group) * k_head + key_start * k_row
        v += b * v_batch + (head // group) * v_head + key_start * v_row
        bias += b * bias_batch + head * bias_head
        mask += b * mask_batch + head * mask_head
        some = load_tile(q, i, d, q_row, q_column, queries, size, WIDEN)
        mixed = tl.zeros((M, VALUES), REAL)
        highest = tl.full((M,), float("-inf"), REAL)
        total = tl.zeros((M,), REAL)
        last = tl.minimum(first + M, queries)
        begin, end = key_range(first, last, queries, keys, window, CAUSAL, WINDOW, N)
        for start in range(begin, end, N):
            j = start + tl.arange(0, N).to(tl.int64)
            other = load_tile(k, j, d, k_row, k_column, keys, size, WIDEN)
            values = load_tile(v, j, e, v_row, v_column, keys, value_size, WIDEN)
            scores, _ = score_tile(
                some, other, i, j, queries, keys, bias, mask, bias_row, bias_column, mask_row, mask_column,
                scale, softcap, window, CAUSAL, WINDOW, SOFTCAP, BIAS, MASK, DOUBLE,
            )  # fmt: skip
            top = tl.maximum(highest, tl.max(scores, 1))
            shift = tl.where(top == float("-inf"), 0.0, top)
            weights = tl.where(scores == float("-inf"), 0.0, tl.exp(scores - shift[:, None]))
            factor = tl.exp(highest - shift)
            total = total * factor + tl.sum(weights, 1)
            if KEEP:
                weights *= kept_tile(i, j, head, tl.load(sample_ids + b), seed, threshold)
            strange = not_finite(values.to(REAL))
            clean = tl.where(strange, 0.0, values).to(values.dtype)
            mixed = tl.where(factor[:, None] == 0.0, 0.0, mixed * factor[:, None])
            mixed += product(weights.to(values.dtype), clean, DOUBLE)
            if tl.max(tl.max(strange.to(tl.int32), 1), 0) > 0:
                mixed = add_strange(mixed, weights, values, DOUBLE)
            highest = top
        empty = total == 0.0
        mean = tl.where(empty[:, None], 0.0, mixed * whole / tl.where(empty, 1.0, total)[:, None])
        there = (
            out
            + b * out_batch
            + head * out_head
            + (query_start + i[:, None]) * out_row
            + e[None, :] * out_column
        )
        here = (i[:, None] < queries) & (e[None, :] < value_size)
        tl.store(there, mean.to(out.dtype.element_ty), mask=here)
        log_sum = tl.where(empty, float("-inf"), highest + tl.log(tl.where(empty, 1.0, total)))
        tl.store(
            lse + b * lse_batch + head * lse_head + (query_start + i) * lse_row, log_sum, mask=i < queries
        )


def launch_options(q, v, bias, mask, query_starts, causal, window, softcap, dropout):
    """Constants of all three kernels."""
    size, value_size = q.shape[-1], v.shape[-1]
    widest = max(triton.next_power_of_2(size), triton.next_power_of_2(value_size), 16)
    side = 16 if q.dtype == torch.float64 or widest > 256 else 32 if widest > 64 else 64
    return {
        "CAUSAL": ("none", "upper_left", "lower_right").index(causal), "WINDOW": window > 0,
        "SOFTCAP": softcap > 0, "BIAS": bias is not None, "MASK": mask is not None,
        "PACKED": query_starts is not None, "KEEP": dropout > 0,
        # Triton's interpreter multiplies the raw bits of bfloat16. The products are exact either way.
        "WIDEN": q.dtype == torch.bfloat16 and triton.knobs.runtime.interpret,
        "M": side, "N": min(side, 32) if q.dtype == torch.float32 else side,
        "SIZE": max(triton.next_power_of_2(size), 16), "VALUES": max(triton.next_power_of_2(value_size), 16),
    }  # fmt: skip


def strides(x, columns=True):
    """Of batch, head, row and column; packed tensors have one batch, absent ones none."""
    if x is None:
        return (0, 0, 0, 0)
    if x.dim() == (3 if columns else 2):
        return (0, x.stride(1), x.stride(0), *x.stride()[2:])
    return x.stride()


def geometry(q, k, query_starts, key_starts):
    """Batch, the longest queries and the longest keys."""
    if query_starts is None:
        return q.shape[0], q.shape[2], k.shape[2]
    longest = [int(x.diff().max()) if len(x) > 1 else 0 for x in (query_starts, key_starts)]
    return len(query_starts) - 1, *longest


def attention(
    out, lse, q, k, v, bias, mask, query_starts, key_starts, causal, window, softcap, scale, dropout, seed,
    ids,
):  # fmt: skip
    """See `fastgen.ops.attention`; bias and mask are expanded to the scores' shape."""
    batch, queries, keys = geometry(q, k, query_starts, key_starts)
    options = launch_options(q, v, bias, mask, query_starts, causal, window, softcap, dropout)
    if not batch or not queries:
        return
    with torch.cuda.device_of(q):  # Triton launches on the current device
        attention_kernel[triton.cdiv(queries, options["M"]), q.shape[1], batch](
            q, k, v, q if bias is None else bias, q if mask is None else mask.view(torch.uint8),
            query_starts, key_starts, ids, out, lse,
            *strides(q), *strides(k), *strides(v), *strides(bias), *strides(mask), *strides(out),
            *strides(lse, columns=False),
            queries, keys, q.shape[1] // k.shape[1], q.shape[-1], v.shape[-1],
            scale, softcap, window, seed, threshold_of(dropout), 1 / (1 - dropout),
            **options, enable_fp_fusion=False, num_warps=WARPS,
        )  # fmt: skip


def threshold_of(dropout):
    """The smallest word that dropout leaves."""
    scaled = dropout * 2.0**32
    return int(scaled) + (int(scaled) < scaled)

"""Gradients of attention on a GPU: weights are found again from the log-sum-exp, tile by tile.

With P the weights, G the gradient of the result and delta = sum over a row of G times the result, less the
gradient of the log-sum-exp:

    dV = P^T G      dS = P (G V^T - delta)      dQ = scale dS K      dK = scale dS^T Q      dbias = dS

A log-sum-exp beyond some 1e7 in size has lost the sum: where all scores of a query are that far out, its
weights count as 1 here.
"""

import torch
import triton
import triton.language as tl
from fastgen.kernels.attention import (
    WARPS,
    geometry,
    kept_tile,
    key_range,
    launch_options,
    load_tile,
    not_finite,
    product,
    score_tile,
    span,
    strides,
    threshold_of,
)


@triton.jit
def row_sums(grads, out, i, e, lse, grad_lse, out_row, out_column, lse_row, grad_lse_row, rows, columns,
             WIDEN: tl.constexpr, REAL: tl.constexpr):  # fmt: skip
    """delta and the log-sum-exp of queries, infinite where no key is seen."""
    result = load_tile(out, i, e, out_row, out_column, rows, columns, WIDEN)
    delta = tl.sum(grads.to(REAL) * result.to(REAL), 1)
    delta -= tl.load(grad_lse + i * grad_lse_row, mask=i < rows, other=0.0)
    log_sum = tl.load(lse + i * lse_row, mask=i < rows, other=float("-inf"))
    return delta, tl.where(log_sum == float("-inf"), float("inf"), log_sum)


@triton.jit
def differentiate(scores, log_sum, grads, values, delta, kept, whole, DOUBLE: tl.constexpr):
    """The weights by which values were added, and the gradients of the scores."""
    weights = tl.where(scores == float("-inf"), 0.0, tl.exp(scores - log_sum[:, None]))
    back = product(grads, tl.trans(values), DOUBLE) * (kept * whole)
    slope = tl.where(weights == 0.0, 0.0, weights * (back - delta[:, None]))
    return weights * (kept * whole), slope


@triton.jit
def queries_kernel(
    q, k, v, bias, mask, query_starts, key_starts, sample_ids, out, lse, grad_out, grad_lse, grad_q,
    grad_bias,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, bias_batch, bias_head, bias_row, bias_column,
    mask_batch, mask_head, mask_row, mask_column, out_batch, out_head, out_row, out_column,
    lse_batch, lse_head, lse_row, grad_batch, grad_head, grad_row, grad_column,
    grad_lse_batch, grad_lse_head, grad_lse_row, gq_batch, gq_head, gq_row, gq_column,
    queries, keys, group, size, value_size, scale, softcap, window, seed, threshold, whole,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
    MASK: tl.constexpr, PACKED: tl.constexpr, KEEP: tl.constexpr, WIDEN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Gradients of M queries of a head and of their row of the bias, which is dense."""
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
        out += b * out_batch + head * out_head + query_start * out_row
        grad_out += b * grad_batch + head * grad_head + query_start * grad_row
        lse += b * lse_batch + head * lse_head + query_start * lse_row
        grad_lse += b * grad_lse_batch + head * grad_lse_head + query_start * grad_lse_row
        some = load_tile(q, i, d, q_row, q_column, queries, size, WIDEN)
        grads = load_tile(grad_out, i, e, grad_row, grad_column, queries, value_size, WIDEN)
        delta, log_sum = row_sums(
            grads, out, i, e, lse, grad_lse, out_row, out_column, lse_row, grad_lse_row, queries, value_size,
            WIDEN, REAL,
        )  # fmt: skip
        total = tl.zeros((M, SIZE), REAL)
        last = tl.minimum(first + M, queries)
        begin, end = key_range(first, last, queries, keys, window, CAUSAL, WINDOW, N)
        for start in range(begin, end, N):
            j = start + tl.arange(0, N).to(tl.int64)
            other = load_tile(k, j, d, k_row, k_column, keys, size, WIDEN)
            values = load_tile(v, j, e, v_row, v_column, keys, value_size, WIDEN)
            scores, curved = score_tile(
                some, other, i, j, queries, keys, bias, mask, bias_row, bias_column, mask_row, mask_column,
                scale, softcap, window, CAUSAL, WINDOW, SOFTCAP, BIAS, MASK, DOUBLE,
            )  # fmt: skip
            kept = tl.full((M, N), 1.0, REAL)
            if KEEP:
                kept = kept_tile(i, j, head, tl.load(sample_ids + b), seed, threshold).to(REAL)
            _, slope = differentiate(scores, log_sum, grads, values, delta, kept, whole, DOUBLE)
            if BIAS:
                rows = (b * tl.num_programs(1) + head) * queries + i[:, None]
                here = (i[:, None] < queries) & (j[None, :] < keys)
                tl.store(grad_bias + rows * keys + j[None, :], slope, mask=here)
            if SOFTCAP:
                slope = tl.where(slope == 0.0, 0.0, slope * (1.0 - curved * curved))
            clean = tl.where(not_finite(other.to(REAL)), 0.0, other).to(other.dtype)
            total += product(slope.to(other.dtype), clean, DOUBLE)
        to = (
            grad_q
            + b * gq_batch
            + head * gq_head
            + (query_start + i[:, None]) * gq_row
            + d[None, :] * gq_column
        )
        tl.store(to, total * scale, mask=(i[:, None] < queries) & (d[None, :] < size))


@triton.jit
def keys_kernel(
    q, k, v, bias, mask, query_starts, key_starts, sample_ids, out, lse, grad_out, grad_lse, grad_k, grad_v,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, bias_batch, bias_head, bias_row, bias_column,
    mask_batch, mask_head, mask_row, mask_column, out_batch, out_head, out_row, out_column,
    lse_batch, lse_head, lse_row, grad_batch, grad_head, grad_row, grad_column,
    grad_lse_batch, grad_lse_head, grad_lse_row, gk_batch, gk_head, gk_row, gk_column,
    gv_batch, gv_head, gv_row, gv_column,
    queries, keys, group, size, value_size, scale, softcap, window, seed, threshold, whole,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
    MASK: tl.constexpr, PACKED: tl.constexpr, KEEP: tl.constexpr, WIDEN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Gradients of N keys and values of a head, from the group of query heads that shares it."""
    key_head, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    DOUBLE: tl.constexpr = q.dtype.element_ty == tl.float64
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    query_start, queries = span(query_starts, b, queries, PACKED)
    key_start, keys = span(key_starts, b, keys, PACKED)
    first = tl.program_id(0).to(tl.int64) * N
    if first < keys:
        j, d, e = first + tl.arange(0, N), tl.arange(0, SIZE), tl.arange(0, VALUES)
        k += b * k_batch + key_head * k_head + key_start * k_row
        v += b * v_batch + key_head * v_head + key_start * v_row
        other = load_tile(k, j, d, k_row, k_column, keys, size, WIDEN)
        values = load_tile(v, j, e, v_row, v_column, keys, value_size, WIDEN)
        of_keys, of_values = tl.zeros((N, SIZE), REAL), tl.zeros((N, VALUES), REAL)
        for member in range(0, group):
            head = key_head * group + member
            my_q = q + b * q_batch + head * q_head + query_start * q_row
            my_out = out + b * out_batch + head * out_head + query_start * out_row
            my_grad = grad_out + b * grad_batch + head * grad_head + query_start * grad_row
            my_lse = lse + b * lse_batch + head * lse_head + query_start * lse_row
            my_grad_lse = grad_lse + b * grad_lse_batch + head * grad_lse_head + query_start * grad_lse_row
            my_bias = bias + b * bias_batch + head * bias_head
            my_mask = mask + b * mask_batch + head * mask_head
            for start in range(0, queries, M):
                i = start + tl.arange(0, M).to(tl.int64)
                some = load_tile(my_q, i, d, q_row, q_column, queries, size, WIDEN)
                grads = load_tile(my_grad, i, e, grad_row, grad_column, queries, value_size, WIDEN)
                delta, log_sum = row_sums(
                    grads, my_out, i, e, my_lse, my_grad_lse, out_row, out_column, lse_row, grad_lse_row,
                    queries, value_size, WIDEN, REAL,
                )  # fmt: skip
                scores, curved = score_tile(
                    some, other, i, j, queries, keys, my_bias, my_mask, bias_row, bias_column, mask_row,
                    mask_column, scale, softcap, window, CAUSAL, WINDOW, SOFTCAP, BIAS, MASK, DOUBLE,
                )  # fmt: skip
                kept = tl.full((M, N), 1.0, REAL)
                if KEEP:
                    kept = kept_tile(i, j, head, tl.load(sample_ids + b), seed, threshold).to(REAL)
                weights, slope = differentiate(scores, log_sum, grads, values, delta, kept, whole, DOUBLE)
                if SOFTCAP:
                    slope = tl.where(slope == 0.0, 0.0, slope * (1.0 - curved * curved))
                clean = tl.where(not_finite(some.to(REAL)), 0.0, some).to(some.dtype)
                of_keys += product(tl.trans(slope).to(some.dtype), clean, DOUBLE)
                of_values += product(tl.trans(weights).to(grads.dtype), grads, DOUBLE)
        row = key_start + j[:, None]
        here = j[:, None] < keys
        to_k = grad_k + b * gk_batch + key_head * gk_head + row * gk_row + d[None, :] * gk_column
        tl.store(to_k, of_keys * scale, mask=here & (d[None, :] < size))
        to_v = grad_v + b * gv_batch + key_head * gv_head + row * gv_row + e[None, :] * gv_column
        tl.store(to_v, of_values, mask=here & (e[None, :] < value_size))


def attention_backward(
    grad_q, grad_k, grad_v, grad_bias, grad_out, grad_lse, out, lse, q, k, v, bias, mask, query_starts,
    key_starts, causal, window, softcap, scale, dropout, seed, ids,
):  # fmt: skip
    """See `fastgen.ops.attention`; gradients are float32, of float64 float64; that of the bias is dense."""
    batch, queries, keys = geometry(q, k, query_starts, key_starts)
    options = launch_options(q, v, bias, mask, query_starts, causal, window, softcap, dropout)
    options |= {"M": min(options["M"], 32), "N": min(options["N"], 32)}
    of_queries, of_keys = dict(options), dict(options)
    if q.dtype == torch.float32:  # whose three passes of TF32 want more registers than there are
        wide = max(options["SIZE"], options["VALUES"]) > 64
        of_keys["M"] = 16
        if wide:
            of_queries["M"] = of_keys["N"] = 16
    common = (
        q, k, v, q if bias is None else bias, q if mask is None else mask.view(torch.uint8),
        query_starts, key_starts, ids, out, lse, grad_out, grad_lse,
    )  # fmt: skip
    places = (
        *strides(q), *strides(k), *strides(v), *strides(bias), *strides(mask), *strides(out),
        *strides(lse, columns=False), *strides(grad_out), *strides(grad_lse, columns=False),
    )  # fmt: skip
    numbers = (
        queries, keys, q.shape[1] // k.shape[1], q.shape[-1], v.shape[-1],
        scale, softcap, window, seed, threshold_of(dropout), 1 / (1 - dropout),
    )  # fmt: skip
    with torch.cuda.device_of(q):  # Triton launches on the current device
        if batch and queries:
            queries_kernel[triton.cdiv(queries, of_queries["M"]), q.shape[1], batch](
                *common, grad_q, q if grad_bias is None else grad_bias, *places, *strides(grad_q), *numbers,
                **of_queries, enable_fp_fusion=False, num_warps=WARPS,
            )  # fmt: skip
        if batch and keys:
            keys_kernel[triton.cdiv(keys, of_keys["N"]), k.shape[1], batch](
                *common, grad_k, grad_v, *places, *strides(grad_k), *strides(grad_v), *numbers, **of_keys,
                enable_fp_fusion=False, num_warps=WARPS,
            )  # fmt: skip

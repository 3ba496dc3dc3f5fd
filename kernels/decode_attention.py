"""Attention of new positions to a cache on a GPU, over fixed blocks and splits of keys.

A program takes a tile of rows (positions by heads of a group, so that a group reads its keys once) against
one split, whose parts a second kernel merges in order; or, where there are many positions, against all
splits one after the other. The tile is the same for every batch, so a row's bits do not depend on the rows
beside it, nor on which of the two it is. Products of float32 take three passes of TF32.
"""

import torch
import triton
import triton.language as tl

SPLIT = 512  # keys
WARPS = 8  # of a tile: with four its numbers do not fit their registers


def block_of(width):
    """Keys of a block, by what fits the registers."""
    return max(16, min(64, 4096 // width))


@triton.jit
def merged(top, weight, acc, part_top, part_weight, part_acc):
    """A part after those so far; one of weight 0 changes nothing."""
    new = tl.maximum(top, part_top)
    base = tl.where(new == float("-inf"), 0.0, new)
    old_factor, factor = tl.exp(top - base), tl.exp(part_top - base)
    sees, first = part_weight != 0.0, weight == 0.0
    both = weight * old_factor + part_weight * factor
    mixed = acc * old_factor[:, None] + part_acc * factor[:, None]
    acc = tl.where(sees[:, None], tl.where(first[:, None], part_acc, mixed), acc)
    return tl.where(sees, new, top), tl.where(sees, tl.where(first, part_weight, both), weight), acc


@triton.jit
def soft_capped(scores, cap):
    """cap tanh(scores / cap)."""
    e = tl.exp(-2.0 * tl.abs(scores / cap))
    t = cap * (1.0 - e) / (1.0 + e)
    return tl.where(scores < 0.0, -t, t)


@triton.jit
def block_weighed(
    top, weight, acc, rows, begin, end, key, base_k, base_v, key_stride_k, key_stride_v, size, last,
    scale, softcap, SOFTCAP: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The running maximum, sum of weights and weighted values after a block of keys from `key` on."""
    k = key + tl.arange(0, KEYS)
    d = tl.arange(0, WIDTH)
    there = (k < last)[:, None] & (d < size)[None, :]
    inside = tl.arange(0, KEYS).to(tl.int64)[:, None]
    keys = tl.load(base_k + inside * key_stride_k + d[None, :], mask=there, other=0.0).to(tl.float32)
    values = tl.load(base_v + inside * key_stride_v + d[None, :], mask=there, other=0.0).to(tl.float32)
    scores = tl.dot(rows, tl.trans(keys), input_precision="tf32x3") * scale
    if SOFTCAP:
        scores = soft_capped(scores, softcap)
    seen = (k[None, :] >= begin[:, None]) & (k[None, :] < end[:, None])
    scores = tl.where(seen, scores, float("-inf"))
    new = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp(scores - base[:, None])
    factor = tl.exp(top - base)
    broken = tl.where(tl.abs(values) < float("inf"), 0.0, 1.0)  # a weight of 0 would not keep them out
    total = tl.dot(weights, tl.where(broken == 0.0, values, 0.0), input_precision="tf32x3")
    if tl.max(broken) > 0.0:
        hit = tl.dot(seen.to(tl.float32), broken, input_precision="tf32x3")
        total = tl.where(hit > 0.0, float("nan"), total)
    return new, weight * factor + tl.sum(weights, 1), acc * factor[:, None] + total


@triton.jit
def attend_kernel(
    out, lse, parts, q, keys, values, lengths, query_starts, block_table, scale, softcap, window,
    k_page, k_head, k_key, v_page, v_head, v_key, tiles, each, table_width, page, splits, size,
    GROUP: tl.constexpr, PACKED: tl.constexpr, PAGED: tl.constexpr, APART: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    KEYS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile of rows against one split (APART) or all of them."""
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    head, heads = tl.program_id(1), tl.num_programs(1) * GROUP
    start = tl.load(query_starts + sequence) if PACKED else sequence * each
    count = tl.load(query_starts + sequence + 1) - start if PACKED else each
    length = tl.load(lengths + sequence)
    r, d = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    first = tl.program_id(0) % tiles * (ROWS // GROUP)
    position = first + r // GROUP
    here = (r < ROWS // GROUP * GROUP) & (position < count)
    end = tl.where(here, tl.maximum(length - count + position + 1, 0), 0)
    begin = tl.maximum(end - window, 0) if WINDOW else end * 0
    row = (start + position) * heads + head * GROUP + r % GROUP
    place = row[:, None] * size + d[None, :]
    inside = here[:, None] & (d < size)[None, :]
    rows = tl.load(q + place, mask=inside, other=0.0).to(tl.float32)
    last = tl.max(end)
    least = tl.maximum(length - count + first + 1 - window, 0) if WINDOW else last * 0
    split = tl.program_id(2).to(tl.int64) if APART else least // SPLIT
    split_end = split + 1 if APART else (last + SPLIT - 1) // SPLIT
    top, weight = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for s in range(split, split_end):
        part_top, part_weight = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
        part_acc = tl.zeros((ROWS, WIDTH), tl.float32)
        key = tl.maximum(s * SPLIT, least // KEYS * KEYS)
        for k in range(key, tl.minimum((s + 1) * SPLIT, last), KEYS):
            if PAGED:
                where = tl.load(block_table + sequence * table_width + k // page).to(tl.int64)
                k_in = k % page
            else:
                where = sequence
                k_in = k
            part_top, part_weight, part_acc = block_weighed(
                part_top, part_weight, part_acc, rows, begin, end, k,
                keys + where * k_page + head * k_head + k_in * k_key,
                values + where * v_page + head * v_head + k_in * v_key,
                k_key, v_key, size, last, scale, softcap, SOFTCAP, WIDTH, KEYS,
            )  # fmt: skip
        top, weight, acc = merged(top, weight, acc, part_top, part_weight, part_acc)
    if APART:
        at = parts + (row * splits + split) * (size + 2)
        tl.store(at, top, mask=here)
        tl.store(at + 1, weight, mask=here)
        tl.store(at[:, None] + 2 + d[None, :], acc, mask=inside)
    else:
        none = weight == 0.0
        scaled = tl.where(none[:, None], 0.0, acc * (1.0 / tl.where(none, 1.0, weight))[:, None])
        tl.store(out + place, scaled.to(out.dtype.element_ty), mask=inside)
        tl.store(
            lse + row, tl.where(none, float("-inf"), top + tl.log(tl.where(none, 1.0, weight))), mask=here
        )


@triton.jit
def merge_kernel(out, lse, parts, splits, size, WIDTH: tl.constexpr):
    """The parts of one row, in order."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)[None, :]
    top, weight = tl.full((1,), float("-inf"), tl.float32), tl.zeros((1,), tl.float32)
    acc = tl.zeros((1, WIDTH), tl.float32)
    for s in range(splits):
        at = parts + (row * splits + s) * (size + 2) + tl.zeros((1,), tl.int64)
        part = tl.load(at[:, None] + 2 + d, mask=d < size, other=0.0)
        top, weight, acc = merged(top, weight, acc, tl.load(at), tl.load(at + 1), part)
    none = weight == 0.0
    scaled = tl.where(none[:, None], 0.0, acc * (1.0 / tl.where(none, 1.0, weight))[:, None])
    tl.store(out + row * size + d, scaled.to(out.dtype.element_ty), mask=d < size)
    here = lse + row + tl.zeros((1,), tl.int64)
    tl.store(here, tl.where(none, float("-inf"), top + tl.log(tl.where(none, 1.0, weight))))


def decode_attention(q, keys, values, lengths, query_starts, block_table, scale, window, softcap):
    """See `fastgen.ops.decode_attention`; q is packed."""
    rows, heads, size = q.shape
    out, lse = torch.empty_like(q), q.new_empty((rows, heads), dtype=torch.float32)
    if q.numel() == 0:
        return out, lse
    sequences, key_heads, page = len(lengths), keys.shape[1], keys.shape[2]
    group = heads // key_heads
    tile = max(16, triton.next_power_of_2(group))
    each = rows // sequences
    positions = rows if query_starts is not None else each
    splits = max(1, triton.cdiv(page if block_table is None else block_table.shape[1] * page, SPLIT))
    apart = splits > 1 and rows <= sequences * (tile // group)
    parts = lse.new_empty((rows * heads * splits if apart else 0, size + 2))
    tiles, width = triton.cdiv(positions, tile // group), max(16, triton.next_power_of_2(size))
    with torch.cuda.device_of(q):  # Triton launches on the current device
        attend_kernel[sequences * tiles, key_heads, splits if apart else 1](
            out, lse, parts, q, keys, values, lengths, lengths if query_starts is None else query_starts,
            lengths if block_table is None else block_table, scale, softcap or 0.0, window or 0,
            *keys.stride()[:3], *values.stride()[:3], tiles, each,
            0 if block_table is None else block_table.shape[1], page, splits, size,
            GROUP=group, PACKED=query_starts is not None, PAGED=block_table is not None, APART=apart,
            WINDOW=window is not None, SOFTCAP=softcap is not None, ROWS=tile, WIDTH=width,
            KEYS=block_of(width), SPLIT=SPLIT, enable_fp_fusion=False, num_warps=WARPS,
        )  # fmt: skip
        if apart:
            merge_kernel[(rows * heads,)](out, lse, parts, splits, size, WIDTH=width)
    return out, lse

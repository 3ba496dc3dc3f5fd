"""The draws of fastgen.random on a GPU: one program a run of Philox blocks of one sample."""

import torch
import triton
import triton.language as tl

from .philox import normal_from_words, stream_words, uniform_from_word

# Philox blocks, of four numbers each, a program. Interpreted, a program takes as long for many as for few.
BLOCKS = 1 << 16 if triton.knobs.runtime.interpret else 256


@triton.jit
def draw_kernel(
    out,
    probability,
    p_row_stride,
    p_stride,
    sample_ids,
    seed,
    step,
    n,
    KIND: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """KIND: 0 bits, 1 uniform, 2 normal, 3 bernoulli. Grid (ceil(n / 4 / BLOCKS), samples)."""
    row = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    sample_id = tl.load(sample_ids + row)
    w0, w1, w2, w3 = stream_words(block, step, sample_id, STREAM, seed)
    if KIND == 2:
        w0, w1 = normal_from_words(w0, w1)
        w2, w3 = normal_from_words(w2, w3)
    words = (w0, w1, w2, w3)
    for k in tl.static_range(4):
        element = 4 * block + k
        inside = element < n
        word = words[k]
        if KIND == 1:
            word = uniform_from_word(word)
        if KIND == 3:
            p = tl.load(probability + row * p_row_stride + element * p_stride, mask=inside, other=0.0)
            word = word.to(tl.float64) < p * 4294967296.0
        tl.store(out + row * n + element, word, mask=inside)


def _launch(kind, out, p, seed, sample_ids, step, stream):
    rows, n = out.shape
    if out.numel() == 0:
        return
    p = p.expand(rows, n) if kind == 3 else sample_ids.new_zeros((1, 1), dtype=torch.float64)
    target = out.view(torch.int32) if out.dtype == torch.uint32 else out
    # A grid's second dimension ends at 65535: more samples go in several launches.
    with torch.cuda.device_of(out):  # Triton launches on the current device
        for first in range(0, rows, 65535):
            part = slice(first, min(first + 65535, rows))
            grid = (triton.cdiv(triton.cdiv(n, 4), BLOCKS), part.stop - part.start)
            draw_kernel[grid](
                target[part], p[part], p.stride(0), p.stride(1), sample_ids[part], seed, step, n,
                KIND=kind, STREAM=stream, BLOCKS=BLOCKS, enable_fp_fusion=False,
            )  # fmt: skip


def bits(out, seed, sample_ids, step, stream):
    """See `fastgen.random.bits`."""
    _launch(0, out, None, seed, sample_ids, step, stream)


def uniform(out, seed, sample_ids, step, stream):
    """See `fastgen.random.uniform`."""
    _launch(1, out, None, seed, sample_ids, step, stream)


def normal(out, seed, sample_ids, step, stream):
    """See `fastgen.random.normal`."""
    _launch(2, out, None, seed, sample_ids, step, stream)


def bernoulli(out, p, seed, sample_ids, step, stream):
    """See `fastgen.random.bernoulli`."""
    _launch(3, out, p, seed, sample_ids, step, stream)

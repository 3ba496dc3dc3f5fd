"""Rotary position embedding on a GPU: a program turns a few heads of one position."""

import torch
import triton
import triton.language as tl

HEADS = 4  # that a program turns


@triton.jit
def rope_kernel(
    y, x, cos, sin, positions, heads, half,
    INTERLEAVED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """(a, b) -> (a cos - b sin, b cos + a sin)."""
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    i = tl.arange(0, HALF)[None, :]
    angle = row % positions * half + i
    c = tl.load(cos + angle, mask=i < half, other=0.0)
    s = tl.load(sin + angle, mask=i < half, other=0.0)
    here = (head < heads) & (i < half)
    first = (row * heads + head) * 2 * half + (2 * i if INTERLEAVED else i)
    second = first + (1 if INTERLEAVED else half)
    a = tl.load(x + first, mask=here, other=0.0).to(c.dtype)
    b = tl.load(x + second, mask=here, other=0.0).to(c.dtype)
    tl.store(y + first, (a * c - b * s).to(y.dtype.element_ty), mask=here)
    tl.store(y + second, (b * c + a * s).to(y.dtype.element_ty), mask=here)


def rope(x, cos, sin, interleaved):
    """See `fastgen.ops.rope`."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    rows, positions, heads, size = x.shape
    with torch.cuda.device_of(x):  # Triton launches on the current device
        rope_kernel[rows * positions, triton.cdiv(heads, HEADS)](
            y, x, cos, sin, positions, heads, size // 2,
            INTERLEAVED=interleaved, HEADS=HEADS, HALF=triton.next_power_of_2(size // 2),
            enable_fp_fusion=False,
        )  # fmt: skip
    return y

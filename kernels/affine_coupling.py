"""Affine couplings on a GPU: one pass over x and its parameters, forward, inverse and backward.

A program takes some rows and goes through them in blocks whose size the row alone fixes, as it does the order
of the sums; so a row's bits do not depend on the rows beside it.
"""

import torch
import triton
import triton.language as tl
from fastgen.kernels.scale_maps import log_scale_of, slope_of

BLOCK = 1024  # elements a program has at a time


@triton.jit
def places(i, count, RUN: tl.constexpr, SHIFT_FIRST: tl.constexpr):
    """Where in a row of parameters the shift and the raw scale of element i lie."""
    first = i // RUN * (2 * RUN) + i % RUN
    return (first, first + RUN) if SHIFT_FIRST else (first + RUN, first)


@triton.jit
def transform_kernel(
    y, log_det, x, raw_params, mask, rows, width, begin, count,
    MAP: tl.constexpr, CLAMP: tl.constexpr, MIN_SCALE: tl.constexpr, INVERSE: tl.constexpr,
    MASKED: tl.constexpr, RUN: tl.constexpr, SHIFT_FIRST: tl.constexpr,
    ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """y and log_det of ROWS rows."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    REAL: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros((ROWS, SIZE), REAL)
    for start in range(0, count, SIZE):
        i = (start + tl.arange(0, SIZE))[None, :]
        here = (row < rows) & (i < count)
        at_shift, at_raw = places(i, count, RUN, SHIFT_FIRST)
        shift = tl.load(raw_params + row * 2 * count + at_shift, mask=here, other=0.0).to(REAL)
        raw = tl.load(raw_params + row * 2 * count + at_raw, mask=here, other=0.0).to(REAL)
        given = tl.load(x + row * width + begin + i, mask=here, other=0.0).to(REAL)
        log = log_scale_of(raw, MAP, CLAMP, MIN_SCALE)
        log = -log if INVERSE else log
        out = (given - shift) * tl.exp(log) if INVERSE else given * tl.exp(log) + shift
        counts = here
        if MASKED:
            passes = tl.load(mask + i, mask=i < count, other=0) != 0
            out = tl.where(passes, given, out)
            counts = counts & (passes == 0)
        total += tl.where(counts, log, 0.0)
        tl.store(y + row * width + begin + i, out.to(y.dtype.element_ty), mask=here)
    at = row + tl.zeros((ROWS, 1), tl.int64)
    tl.store(log_det + at, tl.sum(total, 1, keep_dims=True).to(log_det.dtype.element_ty), mask=at < rows)


@triton.jit
def differentiate_kernel(
    grad_x, grad_params, grad_y, grad_log_det, x, raw_params, mask, rows, width, begin, count,
    MAP: tl.constexpr, CLAMP: tl.constexpr, MIN_SCALE: tl.constexpr, INVERSE: tl.constexpr,
    MASKED: tl.constexpr, RUN: tl.constexpr, SHIFT_FIRST: tl.constexpr,
    ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradients of x and params of a block of ROWS rows."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    REAL: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    KEPT: tl.constexpr = grad_x.dtype.element_ty
    i = (tl.program_id(1) * SIZE + tl.arange(0, SIZE))[None, :]
    here = (row < rows) & (i < count)
    at_shift, at_raw = places(i, count, RUN, SHIFT_FIRST)
    shift = tl.load(raw_params + row * 2 * count + at_shift, mask=here, other=0.0).to(REAL)
    raw = tl.load(raw_params + row * 2 * count + at_raw, mask=here, other=0.0).to(REAL)
    given = tl.load(x + row * width + begin + i, mask=here, other=0.0).to(REAL)
    grad = tl.load(grad_y + row * width + begin + i, mask=here, other=0.0).to(REAL)
    grad_log = tl.load(grad_log_det + row, mask=row < rows, other=0.0).to(REAL)
    log = log_scale_of(raw, MAP, CLAMP, MIN_SCALE)
    slope = slope_of(raw, MAP, CLAMP, MIN_SCALE)
    log, slope = (-log, -slope) if INVERSE else (log, slope)
    grad_in = grad * tl.exp(log)
    grad_shift = -grad_in if INVERSE else grad
    grad_raw = (grad_in * (given - shift if INVERSE else given) + grad_log) * slope
    if MASKED:
        passes = tl.load(mask + i, mask=i < count, other=0) != 0
        grad_in = tl.where(passes, grad, grad_in)
        grad_shift = tl.where(passes, 0.0, grad_shift)
        grad_raw = tl.where(passes, 0.0, grad_raw)
    tl.store(grad_x + row * width + begin + i, grad_in.to(KEPT), mask=here)
    tl.store(grad_params + row * 2 * count + at_shift, grad_shift.to(KEPT), mask=here)
    tl.store(grad_params + row * 2 * count + at_raw, grad_raw.to(KEPT), mask=here)


def _launch(x, params, mask, options):
    """Sizes, and the constants of both kernels."""
    begin, run, scale_map, shift_first, clamp, min_scale, inverse = options
    rows = x.shape[0]
    count = params.numel() // rows // 2
    size = min(triton.next_power_of_2(count), BLOCK)
    sizes = rows, x.numel() // rows, begin, count
    constants = {
        "MAP": scale_map, "CLAMP": clamp, "MIN_SCALE": min_scale, "INVERSE": inverse,
        "MASKED": mask is not None, "RUN": run, "SHIFT_FIRST": shift_first,
        "ROWS": BLOCK // size, "SIZE": size, "enable_fp_fusion": False,
    }  # fmt: skip
    return sizes, constants


def affine_coupling(y, log_det, x, params, mask, *options):
    """Write y, of the elements that are transformed, and log_det; see `fastgen.ops.affine_coupling`."""
    if x.numel() == 0:
        log_det.zero_()
        return
    sizes, constants = _launch(x, params, mask, options)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        transform_kernel[(triton.cdiv(len(x), constants["ROWS"]),)](
            y, log_det, x, params, x if mask is None else mask.view(torch.uint8), *sizes, **constants
        )


def affine_coupling_backward(grad_x, grad_params, grad_y, grad_log_det, x, params, mask, *options):
    """Write the gradients of the elements that are transformed, and of their parameters."""
    if x.numel() == 0:
        return
    sizes, constants = _launch(x, params, mask, options)
    grid = triton.cdiv(len(x), constants["ROWS"]), triton.cdiv(sizes[3], constants["SIZE"])
    with torch.cuda.device_of(x):
        differentiate_kernel[grid](
            grad_x, grad_params, grad_y, grad_log_det, x, params,
            x if mask is None else mask.view(torch.uint8), *sizes, **constants,
        )  # fmt: skip

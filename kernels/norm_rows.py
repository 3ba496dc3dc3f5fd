"""Rows of rms_norm and, CENTRED, of layer_norm on a GPU.

A program takes a row, in blocks whose size the row alone fixes, so a row's bits do not depend on the rows
beside it. Gradients of the weight are summed over blocks of 64 rows, and the blocks in order.
"""

import torch
import triton
import triton.language as tl

ROWS, COLUMNS = 64, 64  # a tile of the sums over rows
BLOCK = 4096  # numbers of a row that a program has at a time, at the most


@triton.jit
def summed(x, residual, place, here, RESIDUAL: tl.constexpr, REAL: tl.constexpr):
    """x + residual, rounded as it is stored."""
    s = tl.load(x + place, mask=here, other=0.0)
    if RESIDUAL:
        s = (s.to(REAL) + tl.load(residual + place, mask=here, other=0.0).to(REAL)).to(x.dtype.element_ty)
    return s.to(REAL)


@triton.jit
def moments(
    x, residual, row, width, eps,
    CENTRED: tl.constexpr, RESIDUAL: tl.constexpr, REAL: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The mean, 0 unless CENTRED, and 1 / sqrt(mean square around it + eps)."""
    i = tl.arange(0, SIZE)
    mean = tl.zeros((), REAL)
    if CENTRED:
        total = tl.zeros((SIZE,), REAL)
        for start in range(0, width, SIZE):
            total += summed(x, residual, row * width + start + i, start + i < width, RESIDUAL, REAL)
        mean = tl.sum(total) / width
    squares = tl.zeros((SIZE,), REAL)
    for start in range(0, width, SIZE):
        here = start + i < width
        s = summed(x, residual, row * width + start + i, here, RESIDUAL, REAL) - mean
        squares += tl.where(here, s * s, 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(squares) / width + eps)


@triton.jit
def normalize_kernel(
    y, total, x, weight, bias, residual, width, eps,
    CENTRED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A row of y and, with a residual, of the sum."""
    row = tl.program_id(0).to(tl.int64)
    REAL: tl.constexpr = weight.dtype.element_ty
    mean, inverse = moments(x, residual, row, width, eps, CENTRED, RESIDUAL, REAL, SIZE)
    i = tl.arange(0, SIZE)
    for start in range(0, width, SIZE):
        place, here = row * width + start + i, start + i < width
        s = summed(x, residual, place, here, RESIDUAL, REAL)
        if RESIDUAL:
            tl.store(total + place, s.to(total.dtype.element_ty), mask=here)
        out = (s - mean) * inverse * tl.load(weight + start + i, mask=here, other=0.0)
        if BIAS:
            out += tl.load(bias + start + i, mask=here, other=0.0)
        tl.store(y + place, out.to(y.dtype.element_ty), mask=here)


@triton.jit
def differentiate_kernel(
    grad_x, means, inverses, grad, x, weight, width, eps, CENTRED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A row of grad_x, and its moments for sum_rows_kernel."""
    row = tl.program_id(0).to(tl.int64)
    REAL: tl.constexpr = weight.dtype.element_ty
    mean, inverse = moments(x, x, row, width, eps, CENTRED, False, REAL, SIZE)
    tl.store(means + row, mean)
    tl.store(inverses + row, inverse)
    i = tl.arange(0, SIZE)
    level, along = tl.zeros((SIZE,), REAL), tl.zeros((SIZE,), REAL)
    for start in range(0, width, SIZE):
        place, here = row * width + start + i, start + i < width
        h = (tl.load(x + place, mask=here, other=0.0).to(REAL) - mean) * inverse
        g = tl.load(grad + place, mask=here, other=0.0).to(REAL)
        g *= tl.load(weight + start + i, mask=here, other=0.0)
        along += g * h
        if CENTRED:
            level += g
    mean_level, mean_along = tl.sum(level) / width, tl.sum(along) / width
    for start in range(0, width, SIZE):
        place, here = row * width + start + i, start + i < width
        h = (tl.load(x + place, mask=here, other=0.0).to(REAL) - mean) * inverse
        g = tl.load(grad + place, mask=here, other=0.0).to(REAL)
        g *= tl.load(weight + start + i, mask=here, other=0.0)
        out = (g - mean_level - h * mean_along) * inverse
        tl.store(grad_x + place, out.to(grad_x.dtype.element_ty), mask=here)


@triton.jit
def sum_rows_kernel(
    grad_weight, grad_bias, grad, x, means, inverses, rows, width,
    CENTRED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of weight and bias from a block of rows."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = (row < rows) & (column[None, :] < width)
    REAL: tl.constexpr = means.dtype.element_ty
    mean = tl.load(means + row, mask=row < rows, other=0.0)
    inverse = tl.load(inverses + row, mask=row < rows, other=0.0)
    place = row * width + column[None, :]
    h = (tl.load(x + place, mask=here, other=0.0).to(REAL) - mean) * inverse
    g = tl.load(grad + place, mask=here, other=0.0).to(REAL)
    place = tl.program_id(0).to(tl.int64) * width + column
    tl.store(grad_weight + place, tl.sum(tl.where(here, g * h, 0.0), 0), mask=column < width)
    if CENTRED:
        tl.store(grad_bias + place, tl.sum(g, 0), mask=column < width)


def block_of(width):
    """Numbers of a row at a time."""
    return min(triton.next_power_of_2(max(width, 16)), BLOCK)


def normalize(y, total, x, weight, bias, eps, residual, centred):
    """Write y and, with a residual, total."""
    if x.numel() == 0:
        return
    with torch.cuda.device_of(x):  # Triton launches on the current device
        normalize_kernel[(len(x),)](
            y, total, x, weight, weight if bias is None else bias, x if residual is None else residual,
            x.shape[1], eps, CENTRED=centred, BIAS=bias is not None, RESIDUAL=residual is not None,
            SIZE=block_of(x.shape[1]), enable_fp_fusion=False,
        )  # fmt: skip


def differentiate(grad, x, weight, eps, centred):
    """Gradients of x, weight and bias, the last of which means something if `centred`."""
    rows, width = x.shape
    grad_x, blocks = torch.empty_like(x), triton.cdiv(rows, ROWS)
    means, inverses = weight.new_empty(2, rows)
    grad_weight, grad_bias = weight.new_empty(2, blocks, width)
    if x.numel():
        with torch.cuda.device_of(x):
            differentiate_kernel[(rows,)](
                grad_x, means, inverses, grad, x, weight, width, eps,
                CENTRED=centred, SIZE=block_of(width), enable_fp_fusion=False,
            )  # fmt: skip
            sum_rows_kernel[blocks, triton.cdiv(width, COLUMNS)](
                grad_weight, grad_bias, grad, x, means, inverses, rows, width,
                CENTRED=centred, ROWS=ROWS, COLUMNS=COLUMNS, enable_fp_fusion=False,
            )  # fmt: skip
    return grad_x, grad_weight.sum(0), grad_bias.sum(0) if centred else None

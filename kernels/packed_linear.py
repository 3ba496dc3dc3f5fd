"""A linear layer with packed weights on a GPU: tiles of the weight are widened in registers and multiplied.

The tiles are the same for every batch and the inputs are added in the same order, so a row's bits do not
depend on the rows beside it. Rows stay float32; products take three passes of TF32, which lose no more than
2**-21 of each.
"""

import torch
import triton
import triton.language as tl
from fastgen.kernels.linear import activate

ROWS, OUTPUTS, INPUTS = 32, 64, 32  # a tile of results, and the inputs it adds at a time: a block
HEAD_BYTES = {"q4_0": 2, "q4_1": 4, "q8_0": 2}  # of a block
VALUE_BYTES = {"q4_0": 16, "q4_1": 16, "q8_0": 32}


@triton.jit
def half_at(data, place, mask):
    """The float16 number at a byte's place, which may be odd, in float32."""
    low = tl.load(data + place, mask=mask, other=0).to(tl.uint16)
    high = tl.load(data + place + 1, mask=mask, other=0).to(tl.uint16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def rounded(a):
    """A block of inputs in 8 bits: integers up to 127 times a scale; NaN where one is not finite."""
    size = tl.maximum(tl.max(tl.abs(a), axis=1), 1e-30)[:, None]
    near = ((a * (127.0 / size) + 12582912.0) - 12582912.0) * (size / 127.0)
    wrong = tl.max(((a - a) != 0.0).to(tl.int32), axis=1)[:, None] != 0
    return tl.where(wrong, float("nan"), near)


@triton.jit
def weight_tile(data, start, i, unit, inputs, outputs, FORMAT: tl.constexpr, HEAD: tl.constexpr,
                VALUES: tl.constexpr):  # fmt: skip
    """(INPUTS, OUTPUTS) of W in float32, those past the edge zero; int8 without its scale."""
    inside = (i < inputs)[:, None] & (unit < outputs)
    wide = unit.to(tl.int64)
    if FORMAT == "float32" or FORMAT == "bfloat16":  # noqa: PLR1714  Triton knows no sets
        place = (wide // 16 * inputs + i[:, None]) * 16 + wide % 16
        return tl.load(data + place, mask=inside, other=0.0).to(tl.float32)
    if FORMAT == "int8":
        k = i[:, None]
        place = ((wide // 16 * tl.cdiv(inputs, 4) + k // 4) * 16 + wide % 16) * 4 + k % 4
        return tl.load(data + place, mask=inside, other=0).to(tl.float32)
    SIZE: tl.constexpr = HEAD + VALUES
    block = wide * (inputs // 32 * SIZE) + start // 32 * SIZE
    d = half_at(data, block, unit < outputs)
    k = (i - start)[:, None]
    if FORMAT == "q8_0":
        q = tl.load(data + block + HEAD + k, mask=inside, other=0).to(tl.int8, bitcast=True)
        return q.to(tl.float32) * d
    two = tl.load(data + block + HEAD + k % 16, mask=inside, other=0).to(tl.int32)
    q = (two >> (k // 16 * 4)) & 15
    if FORMAT == "q4_0":
        return (q - 8).to(tl.float32) * d
    return q.to(tl.float32) * d + half_at(data, block + 2, unit < outputs)


@triton.jit
def packed_linear_kernel(
    x,
    data,
    scale,
    bias,
    residual,
    y,
    rows,
    inputs,
    outputs,
    FORMAT: tl.constexpr,
    HEAD: tl.constexpr,
    VALUES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """A tile of y = activation(x W^T + b) + residual."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    unit = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    here, there = row < rows, unit < outputs
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, inputs, INPUTS):
        i = start + tl.arange(0, INPUTS)
        a = tl.load(x + row * inputs + i, mask=here & (i < inputs), other=0.0).to(tl.float32)
        if FORMAT == "int8":
            a = rounded(a)
        w = weight_tile(data, start, i, unit, inputs, outputs, FORMAT, HEAD, VALUES)
        total = tl.dot(a, w, total, input_precision="tf32x3")
    if FORMAT == "int8":
        total *= tl.load(scale + unit, mask=there, other=0.0)
    if BIAS:
        total += tl.load(bias + unit, mask=there, other=0.0)
    total = activate(total, ACTIVATION)
    place = row * outputs + unit
    if RESIDUAL:
        total += tl.load(residual + place, mask=here & there, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=here & there)


def packed_linear(x, data, scale, format, outputs, bias, activation, residual):
    """See `fastgen.ops.packed_linear`; x is float32 or bfloat16."""
    rows, inputs = x.shape
    y = x.new_empty((rows, outputs))
    if y.numel() == 0:
        return y
    with torch.cuda.device_of(x):  # Triton launches on the current device
        packed_linear_kernel[triton.cdiv(rows, ROWS), triton.cdiv(outputs, OUTPUTS)](
            x, data, x if scale is None else scale, x if bias is None else bias,
            x if residual is None else residual, y, rows, inputs, outputs,
            FORMAT=format, HEAD=HEAD_BYTES.get(format, 0), VALUES=VALUE_BYTES.get(format, 0),
            ACTIVATION=activation, BIAS=bias is not None, RESIDUAL=residual is not None,
            ROWS=ROWS, OUTPUTS=OUTPUTS, INPUTS=INPUTS, enable_fp_fusion=False,
        )  # fmt: skip
    return y

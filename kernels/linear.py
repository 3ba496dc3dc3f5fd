"""A linear layer on a GPU: one product whose epilogue adds the bias, activates and adds the residual.

The tiles are the same for every batch and the inputs are added in the same order, so a row's bits do not
depend on the rows beside it. Products of float32 take three passes of TF32, which lose no more than 2**-21 of
each; those of bfloat16 weights with bfloat16 rows are exact.
"""

import torch
import triton
import triton.language as tl

ROWS, OUTPUTS, INPUTS = 32, 64, 32  # a tile of results, and the inputs it adds at a time
SIDE = 16  # each of the three in float64, whose products are added without tensor cores


@triton.jit
def expm1_nonpositive(z):
    """exp(z) - 1 for z <= 0, without cancellation (Kahan's quotient)."""
    u = tl.exp(z)
    below = u - 1.0
    curved = (below != 0.0) & (below != -1.0)
    quotient = below * (z / tl.log(tl.where(curved, u, 0.5)))
    return tl.where(curved, quotient, tl.where(below == 0.0, z, below))


@triton.jit
def log1p_of_unit(e):
    """log(1 + e) for 0 <= e <= 1, without cancellation (Kahan's quotient)."""
    u = e + 1.0
    return tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z)), which never overflows."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z < 0.0, e, 1.0) / (e + 1.0)


@triton.jit
def tanh(z):
    """tanh from exp(-2|z|) - 1."""
    t = expm1_nonpositive(-2.0 * tl.abs(z))
    y = -t / (t + 2.0)
    return tl.where(z < 0.0, -y, y)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activations of fastgen.reference.linear."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0.0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z < 0.0, 0.01 * z, z)
    elif ACTIVATION == "elu":
        z = tl.where(z > 0.0, z, expm1_nonpositive(tl.where(z > 0.0, 0.0, z)))
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (tl.math.erf(z * 0.7071067811865475) + 1.0)
    elif ACTIVATION == "gelu_tanh":
        z = 0.5 * z * (tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)) + 1.0)
    elif ACTIVATION == "silu":
        z = z * sigmoid(z)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    elif ACTIVATION == "sigmoid":
        z = sigmoid(z)
    elif ACTIVATION == "softplus":
        small = tl.where(z > 0.0, z, 0.0) + log1p_of_unit(tl.exp(-tl.abs(z)))
        z = tl.where(z > 20.0, z, small)
    return z


@triton.jit
def linear_kernel(
    x,
    weight,
    bias,
    residual,
    y,
    rows,
    inputs,
    outputs,
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """A tile of y = activation(x W^T + b) + residual."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    unit = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    here, there = row < rows, unit < outputs
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    total = tl.zeros((ROWS, OUTPUTS), REAL)
    for start in range(0, inputs, INPUTS):
        i = start + tl.arange(0, INPUTS)
        inside = i < inputs
        a = tl.load(x + row * inputs + i, mask=here & inside, other=0.0)
        place = i[:, None] + unit.to(tl.int64) * inputs
        w = tl.load(weight + place, mask=inside[:, None] & there, other=0.0)
        if DOUBLE:
            total += tl.sum(a[:, :, None] * w[None, :, :], axis=1)
        else:
            if WIDEN or a.dtype != w.dtype:
                a, w = a.to(tl.float32), w.to(tl.float32)
            total = tl.dot(a, w, total, input_precision="tf32x3")
    if BIAS:
        total += tl.load(bias + unit, mask=there, other=0.0)
    total = activate(total, ACTIVATION)
    place = row * outputs + unit
    if RESIDUAL:
        total += tl.load(residual + place, mask=here & there, other=0.0).to(REAL)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=here & there)


def linear(x, weight, bias, activation, residual):
    """See `fastgen.ops.linear`."""
    (rows, inputs), outputs = x.shape, weight.shape[0]
    y = x.new_empty((rows, outputs))
    if y.numel() == 0:
        return y
    tile = (SIDE,) * 3 if x.dtype == torch.float64 else (ROWS, OUTPUTS, INPUTS)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        linear_kernel[triton.cdiv(rows, tile[0]), triton.cdiv(outputs, tile[1])](
            x, weight, x if bias is None else bias, x if residual is None else residual, y,
            rows, inputs, outputs,
            ACTIVATION=activation, BIAS=bias is not None, RESIDUAL=residual is not None,
            # Triton's interpreter multiplies the raw bits of bfloat16. The products are exact either way.
            WIDEN=triton.knobs.runtime.interpret,
            ROWS=tile[0], OUTPUTS=tile[1], INPUTS=tile[2], enable_fp_fusion=False,
        )  # fmt: skip
    return y

"""Rational-quadratic splines on a GPU: one program a row, in blocks of elements.

The parameters of an element are read three times, for the largest, for the sum and for the search; after the
first time they lie in the cache. Names and formulas are those of fastgen/reference/rq_spline.py and of
csrc/cpu/rq_spline.cpp.
"""

import math

import torch
import triton
import triton.language as tl

# Elements a program works on at once.
ELEMENTS = 64
TAILS = {"linear": 0, "circular": 1, "none": 2}


@triton.jit
def clamp(x, low, high):
    """NaN stays NaN."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def clipped(raw, CLIP: tl.constexpr):
    """Soft clip of raw numbers; CLIP 0 leaves them as they are."""
    if CLIP > 0:
        raw = raw / (1 + tl.abs(raw) / CLIP)
    return raw


@triton.jit
def clipped_derivative(raw, CLIP: tl.constexpr):
    """Derivative of `clipped`."""
    root = 1 / (1 + tl.abs(raw) / CLIP) if CLIP > 0 else raw * 0 + 1
    return root * root


@triton.jit
def powers(raw, inside, BINS: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr):
    """The largest clipped number of each element, and the sum of exp(number - largest)."""
    most = clipped(tl.load(raw, mask=inside, other=0.0) * SCALE, CLIP)
    for j in range(1, BINS):
        most = tl.maximum(most, clipped(tl.load(raw + j, mask=inside, other=0.0) * SCALE, CLIP))
    total = most * 0
    for j in range(BINS):
        total += tl.exp(clipped(tl.load(raw + j, mask=inside, other=0.0) * SCALE, CLIP) - most)
    return most, total


@triton.jit
def slope_at(raw, column, fixed, inside, MIN_DERIVATIVE: tl.constexpr, CLIP: tl.constexpr):
    """The derivative at a knot, and how it changes with its raw value."""
    value = tl.load(raw + column, mask=inside & (fixed == 0), other=0.0)
    if CLIP > 0:
        slope = tl.exp(clipped(value, CLIP))
        change = slope * clipped_derivative(value, CLIP)
    else:
        small = tl.exp(-tl.abs(value))
        slope = MIN_DERIVATIVE + tl.where(value > 0, value, value * 0) + tl.log(1 + small)
        change = tl.where(value >= 0, 1 / (1 + small), small / (1 + small))
    return tl.where(fixed, 1.0, slope), tl.where(fixed, 0.0, change)


@triton.jit
def root_of(s, eta, d0, d1):
    """Where in its bin the spline reaches the share eta of the bin's height."""
    b = d0 - eta * (d0 + d1 - 2 * s)
    square = b - 2 * s * eta
    root = tl.sqrt(square * square + 4 * s * s * (eta * (1 - eta)))
    return tl.where(b >= 0, 2 * s * eta, root - b) / tl.where(b >= 0, b + root, 2 * (s - b))


@triton.jit
def locate(
    x, raw, inside,
    BINS: tl.constexpr, INVERSE: tl.constexpr, TAIL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BOTTOM: tl.constexpr, TOP: tl.constexpr,
    X_MINIMUM: tl.constexpr, Y_MINIMUM: tl.constexpr, MIN_DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """Find the bin of each element, and what lies before it and in it. Minima are sizes, not shares."""
    low = BOTTOM if INVERSE else LEFT
    high = TOP if INVERSE else RIGHT
    x = clamp(x, low, high)
    x_most, x_sum = powers(raw, inside, BINS, SCALE, CLIP / 2)
    y_most, y_sum = powers(raw + BINS, inside, BINS, SCALE, CLIP / 2)
    x_unit = (RIGHT - LEFT - BINS * X_MINIMUM) / x_sum
    y_unit = (TOP - BOTTOM - BINS * Y_MINIMUM) / y_sum
    zero = tl.zeros_like(x)  # zero + j is j in x's dtype: times a constant it would be float32
    k, before_x, before_y = zero.to(tl.int32), zero, zero
    x_before, y_before, x_power, y_power = zero, zero, zero, zero
    for j in range(BINS):
        if INVERSE:
            edge = BOTTOM + (zero + j) * Y_MINIMUM + before_y * y_unit
        else:
            edge = LEFT + (zero + j) * X_MINIMUM + before_x * x_unit
        past = (x >= edge) | (j == 0)
        px = tl.exp(clipped(tl.load(raw + j, mask=inside, other=0.0) * SCALE, CLIP / 2) - x_most)
        py = tl.exp(clipped(tl.load(raw + BINS + j, mask=inside, other=0.0) * SCALE, CLIP / 2) - y_most)
        k = tl.where(past, j, k)
        x_before, x_power = tl.where(past, before_x, x_before), tl.where(past, px, x_power)
        y_before, y_power = tl.where(past, before_y, y_before), tl.where(past, py, y_power)
        before_x += px
        before_y += py
    width, height = X_MINIMUM + x_power * x_unit, Y_MINIMUM + y_power * y_unit
    x_edge = LEFT + (zero + k) * X_MINIMUM + x_before * x_unit
    y_edge = BOTTOM + (zero + k) * Y_MINIMUM + y_before * y_unit
    first, second = k, k + 1
    if TAIL == 0:
        first, second = k - 1, k
    if TAIL == 1:
        second = (k + 1) % BINS
    derivatives = raw + 2 * BINS
    d0, d0_change = slope_at(derivatives, first, (k == 0) & (TAIL == 0), inside, MIN_DERIVATIVE, CLIP)
    d1, d1_change = slope_at(derivatives, second, (k == BINS - 1) & (TAIL == 0), inside, MIN_DERIVATIVE, CLIP)
    s = height / width
    if INVERSE:
        t = clamp(root_of(s, clamp((x - y_edge) / height, 0.0, 1.0), d0, d1), 0.0, 1.0)
    else:
        t = clamp((x - x_edge) / width, 0.0, 1.0)
    found = (k, x_edge, width, y_edge, height, s, t, d0, d1)
    shares = (x_most, x_sum, x_unit, x_before, x_power, y_most, y_sum, y_unit, y_before, y_power)
    return found, shares, first, second, d0_change, d1_change


@triton.jit
def spline_kernel(
    x_in, raw_params, y_out, log_det_out, columns, parameters,
    BINS: tl.constexpr, INVERSE: tl.constexpr, TAIL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BOTTOM: tl.constexpr, TOP: tl.constexpr,
    X_MINIMUM: tl.constexpr, Y_MINIMUM: tl.constexpr, MIN_DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, CLIP: tl.constexpr, SUM: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((ELEMENTS,), dtype=x_in.dtype.element_ty)
    for first in range(0, columns, ELEMENTS):
        column = first + tl.arange(0, ELEMENTS)
        inside = column < columns
        at = row * columns + column
        x = tl.load(x_in + at, mask=inside, other=0.0)
        found, _, _, _, _, _ = locate(
            x, raw_params + at * parameters, inside, BINS, INVERSE, TAIL, LEFT, RIGHT, BOTTOM, TOP,
            X_MINIMUM, Y_MINIMUM, MIN_DERIVATIVE, SCALE, CLIP,
        )  # fmt: skip
        _, x_edge, width, y_edge, height, s, t, d0, d1 = found
        u = t * (1 - t)
        denominator = s + (d0 + d1 - 2 * s) * u
        ratio = s / denominator
        log_det = tl.log(ratio * (d1 * t * t + 2 * s * u + d0 * (1 - t) * (1 - t)) * ratio)
        if INVERSE:
            y = clamp(x_edge + width * t, LEFT, RIGHT)
            log_det = -log_det
            outside = (x < BOTTOM) | (x > TOP)
        else:
            y = clamp(y_edge + height * ((s * t * t + d0 * u) / denominator), BOTTOM, TOP)
            outside = (x < LEFT) | (x > RIGHT)
        log_det = tl.where(outside | (inside == 0), 0.0, log_det)
        tl.store(y_out + at, tl.where(outside, x, y), mask=inside)
        if SUM:
            total += log_det
        else:
            tl.store(log_det_out + at, log_det, mask=inside)
    if SUM:
        tl.store(log_det_out + row, tl.sum(total, 0))


@triton.jit
def axis_gradient(
    raw, out, inside, k, most, total, unit, before, power, of_edge, of_size,
    BINS: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """Gradients of the raw numbers of an axis, given those of the edge and the size of the bin."""
    mean = (of_edge * before + of_size * power) / total
    for j in range(BINS):
        value = tl.load(raw + j, mask=inside, other=0.0) * SCALE
        share = tl.exp(clipped(value, CLIP) - most) * unit * SCALE
        gradient = tl.where(j < k, of_edge, tl.where(j == k, of_size, 0.0)) - mean
        tl.store(out + j, gradient * share * clipped_derivative(value, CLIP), mask=inside)


@triton.jit
def spline_backward_kernel(
    grad_y, grad_log_det, x_in, raw_params, grad_x, grad_params, columns, parameters,
    BINS: tl.constexpr, INVERSE: tl.constexpr, TAIL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BOTTOM: tl.constexpr, TOP: tl.constexpr,
    X_MINIMUM: tl.constexpr, Y_MINIMUM: tl.constexpr, MIN_DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, CLIP: tl.constexpr, SUM: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Grid (rows, ceil(columns / ELEMENTS))."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = column < columns
    at = row * columns + column
    x = tl.load(x_in + at, mask=inside, other=0.0)
    raw, out = raw_params + at * parameters, grad_params + at * parameters
    found, shares, first, second, d0_change, d1_change = locate(
        x, raw, inside, BINS, INVERSE, TAIL, LEFT, RIGHT, BOTTOM, TOP,
        X_MINIMUM, Y_MINIMUM, MIN_DERIVATIVE, SCALE, CLIP,
    )  # fmt: skip
    k, _, width, _, height, s, t, d0, d1 = found
    outside = (x < BOTTOM) | (x > TOP) if INVERSE else (x < LEFT) | (x > RIGHT)
    of_y = tl.load(grad_y + at, mask=inside, other=0.0)
    of_log = tl.load(grad_log_det + row) if SUM else tl.load(grad_log_det + at, mask=inside, other=0.0)
    of_out = tl.where(outside, 0.0, of_y)
    of_log = tl.where(outside, 0.0, -of_log if INVERSE else of_log)

    rest = 1 - t
    u = t * rest
    denominator = s + (d0 + d1 - 2 * s) * u
    bend = d1 * t * t + 2 * s * u + d0 * rest * rest
    rise = (s * t * t + d0 * u) / denominator
    rise_t = s / denominator * bend / denominator
    rise_s = u / denominator * (d1 * t * t - d0 * rest * rest) / denominator
    log_t = 2 * ((d1 * t - d0 * rest + s * (rest - t)) / bend - (d0 + d1 - 2 * s) * (rest - t) / denominator)
    log_s = 2 * (width / height + u / bend - (1 - 2 * u) / denominator)
    if INVERSE:  # t moves so that the rise stays what it is: dt = -d(rise) / rise_t
        of_rise = -(of_out * width + of_log * log_t) / rise_t
        of_y_edge, of_x_edge = of_rise / height, of_out
    else:
        of_rise = of_out * height
        of_y_edge, of_x_edge = of_out, -(of_rise * rise_t + of_log * log_t) / width
    of_s = (of_rise * rise_s + of_log * log_s) / width
    of_height, of_width = of_y_edge * rise + of_s, of_x_edge * t - of_s * s
    of_d0 = of_rise * (u * (1 - rise) / denominator) + of_log * (rest * rest / bend - 2 * u / denominator)
    of_d1 = of_log * (t * t / bend - 2 * u / denominator) - of_rise * (u * rise / denominator)

    tl.store(grad_x + at, tl.where(outside, of_y, -of_y_edge if INVERSE else -of_x_edge), mask=inside)
    x_most, x_sum, x_unit, x_before, x_power, y_most, y_sum, y_unit, y_before, y_power = shares
    axis_gradient(
        raw,
        out,
        inside,
        k,
        x_most,
        x_sum,
        x_unit,
        x_before,
        x_power,
        of_x_edge,
        of_width,
        BINS,
        SCALE,
        CLIP / 2,
    )
    axis_gradient(
        raw + BINS, out + BINS, inside, k, y_most, y_sum, y_unit, y_before, y_power, of_y_edge, of_height,
        BINS, SCALE, CLIP / 2,
    )  # fmt: skip
    for j in range(parameters - 2 * BINS):
        gradient = tl.where(first == j, of_d0 * d0_change, 0.0) + tl.where(
            second == j, of_d1 * d1_change, 0.0
        )
        tl.store(out + 2 * BINS + j, gradient, mask=inside)


def _constants(bins, inverse, tails, left, right, bottom, top, min_width, min_height, min_derivative, scale,
               parametrization, sum_log_det):  # fmt: skip
    soft = parametrization == "softclip"
    return {
        "BINS": bins, "INVERSE": inverse, "TAIL": TAILS[tails], "LEFT": left, "RIGHT": right,
        "BOTTOM": bottom, "TOP": top, "X_MINIMUM": 0.0 if soft else (right - left) * min_width,
        "Y_MINIMUM": 0.0 if soft else (top - bottom) * min_height, "MIN_DERIVATIVE": min_derivative,
        "SCALE": scale, "CLIP": -math.log(min_derivative) if soft else 0.0, "SUM": sum_log_det,
        "ELEMENTS": ELEMENTS,
    }  # fmt: skip


def rq_spline(x, params, *options):
    """See `fastgen.ops.rq_spline`."""
    rows, columns = x.shape
    y, log_det = torch.empty_like(x), x.new_zeros(x.shape[:1] if options[-1] else x.shape)
    if x.numel():
        with torch.cuda.device_of(x):  # Triton launches on the current device
            spline_kernel[(rows,)](
                x, params, y, log_det, columns, params.shape[-1], **_constants(*options), num_warps=2
            )
    return y, log_det


def rq_spline_backward(grad_y, grad_log_det, x, params, *options):
    """Gradients of x and params."""
    rows, columns = x.shape
    grad_x, grad_params = torch.empty_like(x), torch.empty_like(params)
    if x.numel():
        with torch.cuda.device_of(x):
            spline_backward_kernel[(rows, triton.cdiv(columns, ELEMENTS))](
                grad_y, grad_log_det, x, params, grad_x, grad_params, columns, params.shape[-1],
                **_constants(*options), num_warps=2,
            )  # fmt: skip
    return grad_x, grad_params

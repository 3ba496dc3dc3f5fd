"""How a raw number becomes the scale of an affine map, on a GPU: see fastgen.reference.affine_coupling."""

import triton
import triton.language as tl
from fastgen.kernels.linear import log1p_of_unit, sigmoid, tanh


@triton.jit
def atan(z):
    """From atan(t) for |t| <= tan(pi / 8), a polynomial fitted at Chebyshev nodes (error below 1e-17)."""
    a = tl.abs(z)
    middle, far = a > 0.41421356237309503, a > 2.414213562373095
    above = tl.where(far, -1.0, tl.where(middle, a - 1.0, a))
    below = tl.where(far, a, tl.where(middle, a + 1.0, 1.0))
    t = above / below
    s = t * t
    p = s * -0.019169476385361265 + 0.0392256055958610724
    p = p * s - 0.0508524017415487812
    p = p * s + 0.05858108856106755
    p = p * s - 0.066645068351332635
    p = p * s + 0.076921828633096927
    p = p * s - 0.0909090456402236683
    p = p * s + 0.111111110149092208
    p = p * s - 0.14285714284662226
    p = p * s + 0.199999999999955
    p = p * s - 0.333333333333333301
    quarters = tl.where(far, 2.0, tl.where(middle, 1.0, 0.0)).to(z.dtype)
    y = quarters * 0.7853981633974483 + (t + t * s * p)
    return tl.where(z < 0.0, -y, y)


@triton.jit
def softplus(z):
    """log(1 + exp(z))."""
    return tl.where(z > 0.0, z, 0.0) + log1p_of_unit(tl.exp(-tl.abs(z)))


@triton.jit
def log_scale_of(raw, MAP: tl.constexpr, CLAMP: tl.constexpr, MIN_SCALE: tl.constexpr):
    """The logarithm of the scale."""
    if MAP == "tanh":
        log = CLAMP * tanh(raw / CLAMP)
    elif MAP == "atan":
        log = CLAMP * 0.636 * atan(raw / CLAMP)
    elif MAP == "softclip":
        log = raw / (tl.abs(raw) / CLAMP + 1.0)
    elif MAP == "reciprocal_sigmoid":
        log = softplus(-2.0 - raw)
    elif MAP == "exp":
        log = raw
    else:
        a = raw + 2.0 if MAP == "sigmoid" else raw
        bare = sigmoid(a) if MAP == "sigmoid" else softplus(a)
        if MIN_SCALE > 0.0:
            log = tl.log(bare + MIN_SCALE)
        else:  # far below zero both are exp(a), whose logarithm outlives its underflow
            low = a < (-40.0 if raw.dtype == tl.float64 else -20.0)
            log = tl.where(low, a, tl.log(tl.where(low, 1.0, bare)))
    return log


@triton.jit
def slope_of(raw, MAP: tl.constexpr, CLAMP: tl.constexpr, MIN_SCALE: tl.constexpr):
    """The derivative of that logarithm."""
    if MAP == "tanh":
        t = tanh(raw / CLAMP)
        slope = (1.0 - t) * (t + 1.0)
    elif MAP == "atan":
        t = raw / CLAMP
        slope = 0.636 / (t * t + 1.0)
    elif MAP == "softclip":
        t = tl.abs(raw) / CLAMP + 1.0
        slope = 1.0 / (t * t)
    elif MAP == "reciprocal_sigmoid":
        slope = -sigmoid(-2.0 - raw)
    elif MAP == "exp":
        slope = raw * 0.0 + 1.0
    else:
        a = raw + 2.0 if MAP == "sigmoid" else raw
        bare = sigmoid(a) if MAP == "sigmoid" else softplus(a)
        low = (a < (-40.0 if raw.dtype == tl.float64 else -20.0)) & (MIN_SCALE == 0.0)
        slope = tl.where(low, 1.0, sigmoid(a) / tl.where(low, 1.0, bare + MIN_SCALE))
        if MAP == "sigmoid":
            slope = slope * sigmoid(-a)
    return slope

"""Philox4x32-10 and the float32 functions of csrc/include/fastgen/math.h for Triton kernels.

The same IEEE operations in the same order; kernels that need the bits launch with enable_fp_fusion=False,
since an FMA would round differently.
"""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Four words for counters and keys of uint32 (Salmon et al. 2011)."""
    for _ in tl.static_range(10):
        p0_high = tl.umulhi(c0, tl.full((), 0xD2511F53, tl.uint32))
        p0_low = c0 * tl.full((), 0xD2511F53, tl.uint32)
        p1_high = tl.umulhi(c2, tl.full((), 0xCD9E8D57, tl.uint32))
        p1_low = c2 * tl.full((), 0xCD9E8D57, tl.uint32)
        c0 = p1_high ^ c1 ^ k0
        c1 = p1_low
        c2 = p0_high ^ c3 ^ k1
        c3 = p0_low
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def stream_words(block, step, sample_id, stream: tl.constexpr, seed):
    """Words 4 * block .. 4 * block + 3 of a stream; block and sample_id (int64) broadcast together."""
    # Python integers arrive in the narrowest type that holds them: widen before cutting them into words.
    wide = tl.zeros((), tl.int64)
    low = (sample_id & 0xFFFFFFFF).to(tl.uint32)
    high = ((sample_id >> 32) & 0xFFFFFF).to(tl.uint32) | tl.full((), stream << 24, tl.uint32)
    k0 = ((seed + wide) & 0xFFFFFFFF).to(tl.uint32)
    k1 = (((seed + wide) >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((step + wide) & 0xFFFFFFFF).to(tl.uint32)
    zero = (block * 0 + sample_id * 0).to(tl.uint32)
    return philox(zero + block.to(tl.uint32), zero + c1, zero + low, zero + high, zero + k0, zero + k1)


@triton.jit
def uniform_from_word(word):
    """float32 in (0, 1) from the top 23 bits."""
    return ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def split(x):
    """Exponent and m of normal positive x = m * 2**exponent, m in [sqrt(1/2), sqrt(2))."""
    word = x.to(tl.int32, bitcast=True)
    exponent = (word - 0x3F3504F3) >> 23
    return exponent, (word - (exponent << 23)).to(tl.float32, bitcast=True)


@triton.jit
def log_of_parts(exponent, f):
    """exponent * log(2) + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2))."""
    e = exponent.to(tl.float32)
    p = f * 0.0 + 0.06915578
    p = p * f + -0.11788799
    p = p * f + 0.11872309
    p = p * f + -0.12384494
    p = p * f + 0.14218780
    p = p * f + -0.16669245
    p = p * f + 0.20002219
    p = p * f + -0.24999987
    p = p * f + 0.33333311
    square = f * f
    small = p * f * square
    small = small + e * -2.12194440e-4
    small = small - square * 0.5
    return (f + small) + e * 0.693359375


@triton.jit
def log(x):
    """Natural logarithm of normal positive float32."""
    exponent, m = split(x)
    return log_of_parts(exponent, m - 1.0)


@triton.jit
def exponential_from_word(word):
    """Standard exponential -log(1 - v), v = (top 31 bits + 1/2) / 2**31."""
    top = (word >> 1).to(tl.int32)
    v = (top.to(tl.float32) + 0.5) * 4.656612873077393e-10
    rest = ((0x7FFFFFFF - top).to(tl.float32) + 0.5) * 4.656612873077393e-10
    exponent, m = split(rest)
    return 0.0 - log_of_parts(exponent, tl.where(top < 536870912, 0.0 - v, m - 1.0))


@triton.jit
def gumbel_from_word(word):
    """Standard Gumbel noise -log(-log(1 - v))."""
    return 0.0 - log(exponential_from_word(word))


@triton.jit
def exp_nonpositive(x):
    """exp of float32 x <= 0, held at exp(-87) below."""
    x = tl.maximum(x, -87.0)
    n = (x * 1.44269504 - 0.5).to(tl.int32)
    whole = n.to(tl.float32)
    r = x - whole * 0.693359375
    r = r - whole * -2.12194440e-4
    p = r * 0.0 + 1.99177944e-4
    p = p * r + 1.39460489e-3
    p = p * r + 8.33326549e-3
    p = p * r + 4.16662703e-2
    p = p * r + 1.66666669e-1
    p = p * r + 0.5
    y = (p * (r * r) + r) + 1.0
    return (y.to(tl.int32, bitcast=True) + (n << 23)).to(tl.float32, bitcast=True)


@triton.jit
def sincos_turn(u):
    """Sine and cosine of u turns, float32 u in [0, 1)."""
    quarters = u * 4.0
    quadrant = (quarters + 0.5).to(tl.int32)
    r = quarters - quadrant.to(tl.float32)
    t = r * r
    s = t * 0.0 + -0.00460218
    s = s * t + 0.07968023
    s = s * t + -0.64596348
    s = s * t + 1.57079632
    s = s * r
    c = t * 0.0 + 9.03631701e-4
    c = c * t + -2.08600713e-2
    c = c * t + 2.53669204e-1
    c = c * t + -1.23370054
    c = c * t + 1.0
    swap = (quadrant & 1) == 1
    sine = tl.where(swap, c, s)
    cosine = tl.where(swap, s, c)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    cosine = tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    return sine, cosine


@triton.jit
def normal_from_words(word0, word1):
    """Two standard normals from two words (Box-Muller)."""
    radius = tl.sqrt_rn(-2.0 * log(uniform_from_word(word0)))
    sine, cosine = sincos_turn(uniform_from_word(word1))
    return radius * cosine, radius * sine

"""The specification of `fastgen.random` in plain PyTorch: Philox4x32-10, and float32 log, exp and sincos.

Every float operation is one IEEE operation of torch, in the order of csrc/include/fastgen/math.h, so that the
results have the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def _multiply(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of x * m, both below 2**32, without leaving 63 bits."""
    low, high = x * (m & 0xFFFF), x * (m >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10 on four int64 tensors of 32-bit values that broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _M0)
        high1, low1 = _multiply(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return [c0, c1, c2, c3]


def words(seed: int, sample_ids: Tensor, step: int | Tensor, n: int, stream: int) -> Tensor:
    """(B, n) int64 of 32-bit words: `bits` in a dtype that has arithmetic; step may be (B, 1)."""
    block = torch.arange((n + 3) // 4, device=sample_ids.device)
    sample = sample_ids[:, None]
    counter = [
        block,
        step if isinstance(step, Tensor) else torch.full_like(block, step),
        sample & _LOW,
        (stream << 24) | ((sample >> 32) & 0xFFFFFF),
    ]
    four = philox(counter, (seed & _LOW, (seed >> 32) & _LOW))
    shape = (len(sample_ids), len(block))
    return torch.stack([w.expand(shape) for w in four], dim=-1).reshape(len(sample_ids), 4 * len(block))[
        :, :n
    ]


def bits(seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> Tensor:
    """See `fastgen.random.bits`."""
    return words(seed, sample_ids, step, n, stream).to(torch.uint32)


def uniform_from_words(word: Tensor) -> Tensor:
    """float32 in (0, 1) from the top 23 bits."""
    return ((word >> 9).float() + 0.5) * 2.0**-23


def uniform(seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> Tensor:
    """See `fastgen.random.uniform`."""
    return uniform_from_words(words(seed, sample_ids, step, n, stream))


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """Horner's rule, highest power first; each step one multiplication and one addition."""
    value = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = value * x + torch.tensor(c, dtype=torch.float32)
    return value


def _log(exponent: Tensor, f: Tensor) -> Tensor:
    """exponent * log(2) + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2))."""
    e = exponent.float()
    p = _polynomial(
        f,
        [0.06915578, -0.11788799, 0.11872309, -0.12384494, 0.14218780]
        + [-0.16669245, 0.20002219, -0.24999987, 0.33333311],
    )
    square = f * f
    small = p * f * square
    small = small + e * -2.12194440e-4
    small = small - square * 0.5
    return (f + small) + e * 0.693359375


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Exponent and m of x = m * 2**exponent, m in [sqrt(1/2), sqrt(2))."""
    word = x.view(torch.int32)
    exponent = (word - 0x3F3504F3) >> 23
    return exponent, (word - (exponent << 23)).view(torch.float32)


def log(x: Tensor) -> Tensor:
    """Natural logarithm of normal positive float32."""
    exponent, m = _split(x)
    return _log(exponent, m - 1.0)


def exponential_from_words(word: Tensor) -> Tensor:
    """Standard exponentials -log(1 - v), v = (top 31 bits + 1/2) / 2**31: small ones keep their precision."""
    top = word >> 1
    v = (top.float() + 0.5) * 2.0**-31
    exponent, m = _split(((0x7FFFFFFF - top).float() + 0.5) * 2.0**-31)
    return 0.0 - _log(exponent, torch.where(top < 2**29, 0.0 - v, m - 1.0))


def gumbel_from_words(word: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log(1 - v)), within -3.1 and 22.2."""
    return 0.0 - log(exponential_from_words(word))


def _square_root(x: Tensor) -> Tensor:
    """Correctly rounded float32; torch.sqrt of float32 itself may be off by a bit (vector math libraries)."""
    return torch.sqrt(x.double()).float()


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp of float32 x <= 0, held at exp(-87) below."""
    x = torch.clamp(x, min=-87.0)
    n = (x * 1.44269504 - 0.5).to(torch.int32)
    whole = n.float()
    r = x - whole * 0.693359375
    r = r - whole * -2.12194440e-4
    p = _polynomial(r, [1.99177944e-4, 1.39460489e-3, 8.33326549e-3, 4.16662703e-2, 1.66666669e-1, 0.5])
    y = (p * (r * r) + r) + 1.0
    return (y.view(torch.int32) + (n << 23)).view(torch.float32)


def sincos_turn(u: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of u turns, float32 u in [0, 1)."""
    quarters = u * 4.0
    quadrant = (quarters + 0.5).to(torch.int32)
    r = quarters - quadrant.float()
    t = r * r
    s = _polynomial(t, [-0.00460218, 0.07968023, -0.64596348, 1.57079632]) * r
    c = _polynomial(t, [9.03631701e-4, -2.08600713e-2, 2.53669204e-1, -1.23370054, 1.0])
    swap = (quadrant & 1) == 1
    sine, cosine = torch.where(swap, c, s), torch.where(swap, s, c)
    return (
        torch.where((quadrant & 2) != 0, -sine, sine),
        torch.where(((quadrant + 1) & 2) != 0, -cosine, cosine),
    )


def normal(seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> Tensor:
    """See `fastgen.random.normal`."""
    u = uniform_from_words(words(seed, sample_ids, step, n + n % 2, stream))
    radius = _square_root(-2.0 * log(u[:, 0::2].contiguous()))
    sine, cosine = sincos_turn(u[:, 1::2].contiguous())
    return (
        torch.stack([radius * cosine, radius * sine], dim=-1).reshape(len(u), n + n % 2)[:, :n].contiguous()
    )


def bernoulli(p: Tensor, seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> Tensor:
    """See `fastgen.random.bernoulli`."""
    return words(seed, sample_ids, step, n, stream) < p * 2.0**32

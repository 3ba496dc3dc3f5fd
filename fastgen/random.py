"""The random numbers of fastgen: counter based, without state and without order.

A draw is a pure function of (seed, sample id, step, element, stream), computed by Philox4x32-10
(Salmon et al. 2011, doi:10.1145/2063384.2063405):

    key     = (seed[31:0], seed[63:32])
    counter = (element // 4,  step,  sample_id[31:0],  stream << 24 | sample_id[55:32])
    bits    = output word  element % 4                                     (uint32)
    uniform = ((bits >> 9) + 0.5) * 2**-23                                 (float32, never 0, never 1)
    bernoulli(p) = bits < p * 2**32                                        (p = 0 never, p = 1 always)
    normal  = Box-Muller on the uniforms of elements (2k, 2k+1)

So the numbers of a sample do not depend on the batch it is drawn in, nor on threads, nor on the device:
reference, native, triton and cuda give the same bits.
"""

from __future__ import annotations

import operator
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """What a draw is for. Two different uses never share a stream; 0 to 15 are free for users."""

    USER = 0
    ISING = 16
    ISING_START = 17
    ISING_SWAP = 18
    RBM_GIBBS = 19
    RBM_VISIBLE_NOISE = 20
    RBM_START = 21
    RBM_SWAP = 22
    TRAINING_ORDER = 23
    TRAINING_SPLIT = 24
    INITIAL_WEIGHTS = 25
    TRAINING_NOISE = 26
    FLOW_LATENT = 27
    FLOW_DEQUANTIZATION = 28
    PERMUTATION = 29
    TOKEN = 30
    DROPOUT = 33


def resolve_seed(seed: int | None) -> int:
    """The 64 bits of `seed` as a signed integer; None takes one from torch's default generator.

    Raises:
        TypeError: seed is no integer.
        ValueError: seed is outside -2**63 .. 2**64 - 1.
    """
    if seed is None:
        return int(torch.randint(-(2**63), 2**63 - 1, ()).item())
    seed = as_int("seed", seed, wanted="an int or None")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed}, wanted an integer of 64 bits")
    return seed - 2**64 if seed >= 2**63 else seed


def resolve_sample_ids(sample_ids: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Sample ids as a contiguous int64 tensor (batch,) on `device`; None is 0 .. batch - 1.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device. Ids use 56 bits: the op checks 0 <= id < 2**56.
    """
    if sample_ids is None:
        return torch.arange(batch, device=device)
    if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64:
        came = sample_ids.dtype if isinstance(sample_ids, Tensor) else type(sample_ids).__name__
        raise TypeError(f"sample_ids is {came}, wanted an int64 tensor")
    if sample_ids.shape != (batch,):
        raise ValueError(f"sample_ids has shape {tuple(sample_ids.shape)}, wanted ({batch},)")
    if sample_ids.device != device:
        raise ValueError(f"sample_ids is on {sample_ids.device}, wanted {device}")
    return sample_ids.contiguous()


def as_int(name: str, value: object, least: int | None = None, *, wanted: str = "an int") -> int:
    """An integer of any kind, such as NumPy's, as int.

    Raises:
        TypeError: value is no integer: a float or a bool, say.
        ValueError: value is below `least`.
    """
    if type(value) is not int:
        wanted = wanted if least is None else f"{wanted} of at least {least}"
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
            raise TypeError(f"{name} is {value!r}, wanted {wanted}")
        try:
            # Of a kind of int, such as a Stream, torch.compile can follow int() alone.
            value = int(value) if isinstance(value, int) else operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{name} is {value!r}, wanted {wanted}") from None
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}, wanted at least {least}")
    return value


def as_step(name: str, first: object, count: int = 1, draws: int = 1) -> int:
    """`first` as int; raise unless `count` steps from there, each `draws` of the counter, fit its 32 bits."""
    first = as_int(name, first)
    if first < 0 or (first + count) * draws > 2**32:
        raise ValueError(
            f"{name} is {first} for {count} steps, wanted steps within 0 .. {2**32 // draws - 1}"
        )
    return first


def check_sample_ids(sample_ids: Tensor) -> None:
    """Raise ValueError unless all ids fit the counter's 56 bits (reads the tensor)."""
    if sample_ids.numel() and bool(((sample_ids < 0) | (sample_ids >= 2**56)).any()):
        bad = sample_ids[(sample_ids < 0) | (sample_ids >= 2**56)][0]
        raise ValueError(f"sample_ids holds {int(bad)}, wanted 0 <= id < 2**56")


def _check_draw(sample_ids: Tensor, step: int, stream: int) -> tuple[Tensor, int, int]:
    """The three as the ops take them."""
    if not isinstance(sample_ids, Tensor) or sample_ids.dim() != 1:
        came = tuple(sample_ids.shape) if isinstance(sample_ids, Tensor) else type(sample_ids).__name__
        raise ValueError(f"sample_ids is {came}, wanted an int64 tensor of shape (samples,)")
    step, stream = as_step("step", step), as_int("stream", stream)
    if not 0 <= stream < 256:
        raise ValueError(f"stream is {stream}, wanted 0 to 255")
    return resolve_sample_ids(sample_ids, sample_ids.shape[0], sample_ids.device), step, stream


def _memory(out: Tensor | None, sample_ids: Tensor, n: int | None, dtype: torch.dtype) -> Tensor:
    """Where the numbers go: `out`, if it fits, or fresh memory."""
    if n is None and isinstance(out, Tensor) and out.dim() == 2:
        n = out.shape[1]
    count = as_int("n", n)
    if not 0 <= count <= 2**34:
        raise ValueError(f"n is {n}, wanted 0 to 2**34 numbers a sample")
    wanted = (sample_ids.shape[0], count)
    if out is None:
        return sample_ids.new_empty(wanted, dtype=dtype)
    if not isinstance(out, Tensor) or out.dtype != dtype or out.requires_grad:
        kind = out.dtype if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(f"out is {kind}, wanted a {dtype} tensor that requires no gradient")
    if out.shape != wanted or not out.is_contiguous() or out.device != sample_ids.device:
        came, device = f"{tuple(out.shape)} on {out.device}", sample_ids.device
        raise ValueError(f"out has shape {came}, wanted a contiguous {wanted} on {device}")
    return out


def _draw(
    op: str,
    dtype: torch.dtype,
    seed: int | None,
    sample_ids: Tensor,
    step: int,
    n: int | None,
    stream: int,
    out: Tensor | None,
) -> Tensor:
    ids, step, stream = _check_draw(sample_ids, step, stream)
    out = _memory(out, ids, n, dtype)
    getattr(torch.ops.fastgen, op)(out, resolve_seed(seed), ids, step, stream)
    return out


def bits(
    seed: int | None,
    sample_ids: Tensor,
    *,
    step: int = 0,
    n: int | None = None,
    stream: int = Stream.USER,
    out: Tensor | None = None,
) -> Tensor:
    """Words of 32 random bits.

    Args:
        seed: 64 bits; None takes a seed from torch's default generator.
        sample_ids: (B,) int64, 0 <= id < 2**56: which samples' numbers.
        step: 0 .. 2**32 - 1: which step of those samples.
        n: how many numbers a sample; None takes as many as `out` has.
        stream: 0 .. 255: which use; `Stream` names those that fastgen's ops take.
        out: (B, n), contiguous, of the dtype returned: where to write; None takes fresh memory.

    Returns:
        (B, n) uint32.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    return _draw("bits", torch.uint32, seed, sample_ids, step, n, stream, out)


def uniform(
    seed: int | None,
    sample_ids: Tensor,
    *,
    step: int = 0,
    n: int | None = None,
    stream: int = Stream.USER,
    out: Tensor | None = None,
) -> Tensor:
    """Uniform numbers in (0, 1), multiples of 2**-24: never 0, never 1. Arguments and errors as `bits`.

    Returns:
        (B, n) float32.
    """
    return _draw("uniform", torch.float32, seed, sample_ids, step, n, stream, out)


def normal(
    seed: int | None,
    sample_ids: Tensor,
    *,
    step: int = 0,
    n: int | None = None,
    stream: int = Stream.USER,
    out: Tensor | None = None,
) -> Tensor:
    """Standard normal numbers (Box-Muller), within +-5.77. Arguments and errors as `bits`.

    Returns:
        (B, n) float32.
    """
    return _draw("normal", torch.float32, seed, sample_ids, step, n, stream, out)


def bernoulli(
    p: float | Tensor,
    seed: int | None,
    sample_ids: Tensor,
    *,
    step: int = 0,
    n: int | None = None,
    stream: int = Stream.USER,
    out: Tensor | None = None,
) -> Tensor:
    """True with probability p, resolved to 2**-32: p = 0 is never, p = 1 is always.

    Args:
        p: a number, or a floating tensor that broadcasts to (B, n), in [0, 1].
        seed, sample_ids, step, n, stream, out: as `bits`.

    Returns:
        (B, n) bool.

    Raises:
        TypeError, ValueError: as `bits`, or p is NaN or outside [0, 1].
    """
    ids, step, stream = _check_draw(sample_ids, step, stream)
    out = _memory(out, ids, n, torch.bool)
    if isinstance(p, Tensor):
        if not p.is_floating_point() or p.device != ids.device:
            raise TypeError(f"p is {p.dtype} on {p.device}, wanted a floating tensor on {ids.device}")
        wanted = tuple(out.shape)
        fits = (side in (1, whole) for side, whole in zip(p.shape[::-1], wanted[::-1], strict=False))
        if p.dim() > 2 or not all(fits):
            raise ValueError(f"p has shape {tuple(p.shape)}, wanted one that broadcasts to {wanted}")
        probability = p.double()
    else:
        if not isinstance(p, (int, float)):
            raise TypeError(f"p is {p!r}, wanted a number or a floating tensor")
        probability = torch.tensor(float(p), dtype=torch.float64, device=ids.device)
    torch.ops.fastgen.bernoulli(out, probability, resolve_seed(seed), ids, step, stream)
    return out

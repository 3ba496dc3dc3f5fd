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


def resolve_seed(seed: int | None) -> int:
    """The 64 bits of `seed` as a signed integer; None takes one from torch's default generator.

    Raises:
        TypeError: seed is no integer.
        ValueError: seed is outside -2**63 .. 2**64 - 1.
    """
    if seed is None:
        return int(torch.randint(-(2**63), 2**63 - 1, ()).item())
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed is {seed!r}, wanted an int or None")
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


def check_int(name: str, value: object) -> None:
    """Raise TypeError unless value is an int; a bool is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, wanted an int")


def check_step(name: str, first: int, count: int = 1, draws: int = 1) -> None:
    """Raise unless steps first .. first + count - 1, each `draws` steps of the counter, fit its 32 bits."""
    check_int(name, first)
    if first < 0 or (first + count) * draws > 2**32:
        raise ValueError(
            f"{name} is {first} for {count} steps, wanted steps within 0 .. {2**32 // draws - 1}"
        )


def check_sample_ids(sample_ids: Tensor) -> None:
    """Raise ValueError unless all ids fit the counter's 56 bits (reads the tensor)."""
    if sample_ids.numel() and bool(((sample_ids < 0) | (sample_ids >= 2**56)).any()):
        bad = sample_ids[(sample_ids < 0) | (sample_ids >= 2**56)][0]
        raise ValueError(f"sample_ids holds {int(bad)}, wanted 0 <= id < 2**56")


def _check_draw(sample_ids: Tensor, step: int, n: int, stream: int) -> Tensor:
    if not isinstance(sample_ids, Tensor) or sample_ids.dim() != 1:
        came = tuple(sample_ids.shape) if isinstance(sample_ids, Tensor) else type(sample_ids).__name__
        raise ValueError(f"sample_ids is {came}, wanted an int64 tensor of shape (samples,)")
    check_step("step", step)
    check_int("n", n)
    check_int("stream", stream)
    if not 0 <= n <= 2**34:
        raise ValueError(f"n is {n}, wanted 0 to 2**34 numbers a sample")
    if not 0 <= stream < 256:
        raise ValueError(f"stream is {stream}, wanted 0 to 255")
    return resolve_sample_ids(sample_ids, sample_ids.shape[0], sample_ids.device)


def bits(seed: int | None, sample_ids: Tensor, *, step: int = 0, n: int, stream: int = Stream.USER) -> Tensor:
    """Words of 32 random bits.

    Args:
        seed: 64 bits; None takes a seed from torch's default generator.
        sample_ids: (B,) int64, 0 <= id < 2**56: which samples' numbers.
        step: 0 .. 2**32 - 1: which step of those samples.
        n: how many numbers a sample.
        stream: 0 .. 255: which use; `Stream` names those that fastgen's ops take.

    Returns:
        (B, n) uint32.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    ids = _check_draw(sample_ids, step, n, stream)
    return torch.ops.fastgen.bits(resolve_seed(seed), ids, step, n, int(stream))


def uniform(
    seed: int | None, sample_ids: Tensor, *, step: int = 0, n: int, stream: int = Stream.USER
) -> Tensor:
    """Uniform numbers in (0, 1), multiples of 2**-24: never 0, never 1. Arguments and errors as `bits`.

    Returns:
        (B, n) float32.
    """
    ids = _check_draw(sample_ids, step, n, stream)
    return torch.ops.fastgen.uniform(resolve_seed(seed), ids, step, n, int(stream))


def normal(
    seed: int | None, sample_ids: Tensor, *, step: int = 0, n: int, stream: int = Stream.USER
) -> Tensor:
    """Standard normal numbers (Box-Muller), within +-5.77. Arguments and errors as `bits`.

    Returns:
        (B, n) float32.
    """
    ids = _check_draw(sample_ids, step, n, stream)
    return torch.ops.fastgen.normal(resolve_seed(seed), ids, step, n, int(stream))


def bernoulli(
    p: float | Tensor,
    seed: int | None,
    sample_ids: Tensor,
    *,
    step: int = 0,
    n: int,
    stream: int = Stream.USER,
) -> Tensor:
    """True with probability p, resolved to 2**-32: p = 0 is never, p = 1 is always.

    Args:
        p: a number, or a floating tensor that broadcasts to (B, n), in [0, 1].
        seed, sample_ids, step, n, stream: as `bits`.

    Returns:
        (B, n) bool.

    Raises:
        TypeError, ValueError: as `bits`, or p is NaN or outside [0, 1].
    """
    ids = _check_draw(sample_ids, step, n, stream)
    if isinstance(p, Tensor):
        if not p.is_floating_point() or p.device != ids.device:
            raise TypeError(f"p is {p.dtype} on {p.device}, wanted a floating tensor on {ids.device}")
        wanted = (ids.shape[0], n)
        fits = (side in (1, whole) for side, whole in zip(p.shape[::-1], wanted[::-1], strict=False))
        if p.dim() > 2 or not all(fits):
            raise ValueError(f"p has shape {tuple(p.shape)}, wanted one that broadcasts to {wanted}")
        probability = p.double()
    else:
        if not isinstance(p, (int, float)):
            raise TypeError(f"p is {p!r}, wanted a number or a floating tensor")
        probability = torch.tensor(float(p), dtype=torch.float64, device=ids.device)
    return torch.ops.fastgen.bernoulli(probability, resolve_seed(seed), ids, step, n, int(stream))

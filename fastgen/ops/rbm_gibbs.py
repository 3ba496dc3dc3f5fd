"""The op `rbm_gibbs`: block Gibbs sampling of a restricted Boltzmann machine.

Triton covers the GPU: a half step there is one product whose epilogue draws, so CUDA C++ would add nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, SupportsFloat

import torch
from torch import Tensor

from fastgen.ops._registry import Op, register
from fastgen.random import Stream, as_int, as_step, check_sample_ids, resolve_sample_ids, resolve_seed
from fastgen.reference import rbm_gibbs as reference

_WEIGHTS = (torch.float32, torch.bfloat16, torch.float64)
_BYTES = (torch.bool, torch.uint8, torch.int8)


class RBMState(NamedTuple):
    """What `rbm_gibbs` returns.

    Attributes:
        v, h: (B, V) and (B, H), the states after the last half step, in the dtypes that came.
        v_mean: (B, V) float32, what the last update of v drew from: probabilities, or means of gaussian
            units; of clamped units, their values. None unless asked for, or if v was not updated.
        h_mean: (B, H) float32, the probabilities that the last update of h drew from. None likewise.
    """

    v: Tensor
    h: Tensor
    v_mean: Tensor | None
    h_mean: Tensor | None


@torch.no_grad()
def rbm_gibbs(
    v: Tensor,
    h: Tensor | None,
    weight: Tensor,
    v_bias: Tensor,
    h_bias: Tensor,
    *,
    half_steps: int = 2,
    beta: float | Tensor = 1.0,
    visible: str = "bernoulli",
    clamp_mask: Tensor | None = None,
    clamp_values: Tensor | None = None,
    probabilities: bool = False,
    seed: int | None = None,
    sample_ids: Tensor | None = None,
    first_step: int = 0,
) -> RBMState:
    """Half steps of block Gibbs sampling at P(v, h) ~ exp(-beta E(v, h)) (Smolensky 1986; Hinton 2002).

    Units of 0 and 1 have E = -v.b - h.c - v W h. Gaussian visible units have E = |v - b|^2 / 2 - h.c - v W
    h, so that v given h is normal with mean b + W h and variance 1 / beta. Half step t draws h given v if t
    is even, v given h if t is odd. Unit j of half step t takes word j of step t of `Stream.RBM_GIBBS`
    (gaussian units: normal number j of `Stream.RBM_VISIBLE_NOISE`); its less likely state has a probability
    resolved to 2**-31. So (v, h) and t are all there is to a chain: half steps n .. m - 1 after 0 .. n - 1
    (`first_step=n`) give what 0 .. m - 1 gives, in any batch and with any number of threads.

    The native implementation adds the inputs of a unit in groups of four, (w0 + w1) + (w2 + w3), one group
    after the other to the bias, whatever the batch and the instruction set; real inputs it adds one by one.

    Nothing is differentiable: results never require a gradient.

    Args:
        v: (B, V) of 0 and 1: bool, uint8, int8 or floating. Gaussian: float32, finite.
        h: (B, H) of 0 and 1, likewise; None if the first half step draws h, which then gets v's dtype.
        weight: W (V, H), float32 or bfloat16, finite; with the reference also float64.
        v_bias: b (V,), floating, finite.
        h_bias: c (H,), floating, finite.
        half_steps: how many half steps, 0 or more; two update both layers once.
        beta: inverse temperature, finite, >= 0 (gaussian: > 0): a number, or a floating tensor (B,).
        visible: "bernoulli" or "gaussian".
        clamp_mask: (V,) or (B, V) bool; visible units that keep their value, for inpainting.
        clamp_values: (V,) or (B, V), real, the values of the clamped units; None keeps what v holds.
        probabilities: also return what the last update of each layer drew from.
        seed: 64 bits; None takes a seed from torch's default generator.
        sample_ids: (B,) int64, 0 <= id < 2**56; None is 0 .. B - 1.
        first_step: t of the first half step, up to 2**32 - half_steps.

    Returns:
        RBMState(v, h, v_mean, h_mean).

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    if visible not in ("bernoulli", "gaussian"):
        raise ValueError(f"visible is {visible!r}, wanted 'bernoulli' or 'gaussian'")
    half_steps = as_int("half_steps", half_steps, 0)
    if not isinstance(probabilities, bool):
        raise TypeError(f"probabilities is {probabilities!r}, wanted True or False")
    first_step = as_step("first_step", first_step, half_steps)
    gaussian = visible == "gaussian"
    _check_model(weight, v_bias, h_bias)
    _check_states("v", v, weight.shape[0], weight.device, gaussian)
    h_dtype = v.dtype if h is None else getattr(h, "dtype", None)
    if h is None:
        if half_steps == 0 or first_step % 2:
            raise ValueError("h is None, wanted a tensor, since the first half step does not draw h")
        h = v.new_zeros((v.shape[0], weight.shape[1]), dtype=torch.uint8)
    _check_states("h", h, weight.shape[1], weight.device, False)
    if len(h) != len(v):
        raise ValueError(f"h has {len(h)} chains, wanted {len(v)} as v")
    held, start = _clamp(v, clamp_mask, clamp_values, gaussian)
    real = torch.float64 if weight.dtype == torch.float64 else torch.float32
    v_new, h_new, v_mean, h_mean = torch.ops.fastgen.rbm_gibbs(
        start.contiguous(),
        h.contiguous(),
        weight,
        v_bias.to(real).contiguous(),
        h_bias.to(real).contiguous(),
        _per_chain(beta, v.shape[0], weight.device).to(real),
        held,
        half_steps,
        gaussian,
        probabilities,
        resolve_seed(seed),
        resolve_sample_ids(sample_ids, v.shape[0], v.device),
        first_step,
    )
    v_new = v_new.to(v.dtype)
    if held is not None and _updates(1, half_steps, first_step) and probabilities:
        v_mean = torch.where(held, v_new.to(v_mean.dtype), v_mean)
    return RBMState(
        v_new,
        h_new.to(h_dtype),
        v_mean if probabilities and _updates(1, half_steps, first_step) else None,
        h_mean if probabilities and _updates(0, half_steps, first_step) else None,
    )


def _updates(parity: int, half_steps: int, first_step: int) -> bool:
    """Whether some half step has this parity: 0 draws h, 1 draws v."""
    return half_steps >= 2 or (half_steps == 1 and first_step % 2 == parity)


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype}" if _is_dense(value) else f"{value.layout} of {value.dtype}"


def _is_dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _check_model(weight: Tensor, v_bias: Tensor, h_bias: Tensor) -> None:
    if not _is_dense(weight) or weight.dtype not in _WEIGHTS:
        raise TypeError(f"weight is {_kind(weight)}, wanted a dense float32 or bfloat16 tensor")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, wanted (V, H) with V >= 1 and H >= 1")
    for name, bias, units in (("v_bias", v_bias, weight.shape[0]), ("h_bias", h_bias, weight.shape[1])):
        if not _is_dense(bias) or not bias.is_floating_point():
            raise TypeError(f"{name} is {_kind(bias)}, wanted a floating tensor")
        if bias.shape != (units,):
            raise ValueError(f"{name} has shape {tuple(bias.shape)}, wanted ({units},) for this weight")
        if bias.device != weight.device:
            raise ValueError(f"{name} is on {bias.device}, wanted {weight.device} as weight")


def _check_states(name: str, states: Tensor, units: int, device: torch.device, gaussian: bool) -> None:
    if gaussian and (not _is_dense(states) or states.dtype != torch.float32):
        raise TypeError(f"{name} is {_kind(states)}, wanted a float32 tensor for gaussian units")
    if not _is_dense(states) or not (states.dtype in _BYTES or states.is_floating_point()):
        raise TypeError(f"{name} is {_kind(states)}, wanted a bool, uint8, int8 or floating tensor")
    if states.dim() != 2 or states.shape[1] != units:
        raise ValueError(f"{name} has shape {tuple(states.shape)}, wanted (chains, {units}) for this weight")
    if states.device != device:
        raise ValueError(f"{name} is on {states.device}, wanted {device} as weight")


def _clamp(
    v: Tensor, mask: Tensor | None, values: Tensor | None, gaussian: bool
) -> tuple[Tensor | None, Tensor]:
    """The mask and the states to start from."""
    if mask is None:
        if values is not None:
            raise ValueError("clamp_values came without clamp_mask, wanted both")
        return None, v
    if not _is_dense(mask) or mask.dtype != torch.bool:
        raise TypeError(f"clamp_mask is {_kind(mask)}, wanted a bool tensor")
    for name, given in (("clamp_mask", mask), ("clamp_values", v if values is None else values)):
        if not _is_dense(given) or given.is_complex():
            raise TypeError(f"{name} is {_kind(given)}, wanted a dense tensor of real numbers")
        if given.shape not in (v.shape[1:], v.shape):
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, wanted ({v.shape[1]},) or {tuple(v.shape)} as v"
            )
        if given.device != v.device:
            raise ValueError(f"{name} is on {given.device}, wanted {v.device} as v")
    if values is None:
        return mask.contiguous(), v
    # Binary values keep their dtype, so that what is neither 0 nor 1 is seen.
    return mask.contiguous(), torch.where(mask, values.to(v.dtype) if gaussian else values, v)


def _per_chain(beta: float | Tensor, batch: int, device: torch.device) -> Tensor:
    if not isinstance(beta, SupportsFloat):
        raise TypeError(f"beta is {_kind(beta)}, wanted a number or a floating tensor")
    if not isinstance(beta, Tensor):
        return torch.full((batch,), float(beta), dtype=torch.float64, device=device)
    if not beta.is_floating_point() or beta.device != device:
        raise TypeError(f"beta is {beta.dtype} on {beta.device}, wanted a floating tensor on {device}")
    if beta.shape not in ((), (batch,)):
        raise ValueError(f"beta has shape {tuple(beta.shape)}, wanted () or ({batch},)")
    return beta.expand(batch).contiguous()


def _finite(value: Tensor) -> bool:
    # The sum is finite unless some element is not, or it overflows: then look at each.
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def _check_values(
    v: Tensor, h: Tensor, weight: Tensor, v_bias: Tensor, h_bias: Tensor, beta: Tensor, *rest: Any
) -> None:
    gaussian, sample_ids = rest[2], rest[5]
    real = (("weight", weight), ("v_bias", v_bias), ("h_bias", h_bias), ("beta", beta))
    for name, value in (*real, ("v", v)) if gaussian else real:
        if not _finite(value):
            raise ValueError(f"{name} holds {value[~torch.isfinite(value)][0].item()}, wanted finite numbers")
    if bool((beta < 0).any()) or (gaussian and bool((beta == 0).any())):
        wanted = "numbers > 0 for gaussian units" if gaussian else "numbers >= 0"
        raise ValueError(f"beta holds {beta.min().item()}, wanted {wanted}")
    check_sample_ids(sample_ids)


def _refuse_other_than_bits(v: Tensor, h: Tensor, gaussian: bool) -> None:
    for name, states in (("h", h),) if gaussian else (("v", v), ("h", h)):
        if states.dtype == torch.bool:
            continue
        wrong = (states != 0) & (states != 1)
        if bool(wrong.any()):
            raise ValueError(f"{name} holds {states[wrong][0].item()}, wanted 0 and 1")


def _new_means(v_bias: Tensor, h_bias: Tensor, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Where the means go, without rows if there are none to give; `rest` is what follows the biases."""
    beta, _, half_steps, _, probabilities, _, _, first_step = rest
    v_rows = beta.shape[0] if probabilities and _updates(1, half_steps, first_step) else 0
    h_rows = beta.shape[0] if probabilities and _updates(0, half_steps, first_step) else 0
    return v_bias.new_empty((v_rows, v_bias.shape[0])), h_bias.new_empty((h_rows, h_bias.shape[0]))


def _fake(
    v: Tensor, h: Tensor, weight: Tensor, v_bias: Tensor, h_bias: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(v), torch.empty_like(h), *_new_means(v_bias, h_bias, rest)


def _on_bytes(function: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]) -> Callable[..., Any]:
    """Hands binary states to `function` as uint8, and back in the dtypes that came."""

    def run(v: Tensor, h: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gaussian = rest[5]
        _refuse_other_than_bits(v, h, gaussian)
        start = v if gaussian else v.to(torch.uint8)
        v_new, h_new, v_mean, h_mean = function(start, h.to(torch.uint8), weight.contiguous(), *rest)
        # An op's results never alias its arguments.
        v_new, h_new = (new.clone() if new is old else new for new, old in ((v_new, v), (h_new, h)))
        return v_new.to(v.dtype), h_new.to(h.dtype), v_mean, h_mean

    return run


def _refuse_float64(weight: Tensor) -> None:
    if weight.dtype == torch.float64:
        raise TypeError(
            "weight is torch.float64, wanted float32 or bfloat16 (use_backend('reference') takes it)"
        )


def _native(
    v: Tensor, h: Tensor, weight: Tensor, v_bias: Tensor, h_bias: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernel reads and checks binary states of one byte or of float32; others are made bytes here."""
    _refuse_float64(weight)
    beta, mask, half_steps, gaussian, _, seed, sample_ids, first_step = rest
    start, v_means, h_means = [v, h], *_new_means(v_bias, h_bias, rest)
    for i, states in enumerate(start):
        if states.dtype in _BYTES:
            start[i] = states.view(torch.uint8)
        elif states.dtype != torch.float32:
            _refuse_other_than_bits(v, h, gaussian)
            start[i] = states.to(torch.uint8)
    v_new, h_new = (torch.empty_like(states) for states in start)
    if gaussian:
        v_new.copy_(v)
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    model = (weight, v_bias, h_bias, beta, mask)
    draws = (seed, sample_ids, first_step, int(Stream.RBM_GIBBS), int(Stream.RBM_VISIBLE_NOISE))
    valid = torch.ops.fastgen_native.rbm_gibbs(
        *start, v_new, h_new, v_means, h_means, *model, half_steps, gaussian, *draws
    )
    if not valid:
        _refuse_other_than_bits(v, h, gaussian)
    return _as(v_new, v.dtype), _as(h_new, h.dtype), v_means, h_means


def _as(states: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes of 0 and 1 are a bool or an int8 without a copy."""
    return states.view(dtype) if dtype in _BYTES else states.to(dtype)


def _triton(v: Tensor, h: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fastgen.kernels import rbm_gibbs as kernels  # noqa: PLC0415  triton is optional

    _refuse_float64(weight)
    return kernels.rbm_gibbs(v, h, weight, *rest, int(Stream.RBM_GIBBS), int(Stream.RBM_VISIBLE_NOISE))


register(
    Op(
        name="rbm_gibbs",
        schema="(Tensor v, Tensor h, Tensor weight, Tensor v_bias, Tensor h_bias, Tensor beta,"
        " Tensor? clamp_mask, SymInt half_steps, bool gaussian, bool probabilities, SymInt seed,"
        " Tensor sample_ids, SymInt first_step) -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake,
        implementations={
            "reference": _on_bytes(reference.rbm_gibbs),
            "native": _native,
            "triton": _on_bytes(_triton),
        },
        check_values=_check_values,
    )
)

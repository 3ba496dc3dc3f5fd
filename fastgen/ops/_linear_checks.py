"""Checks of arguments that `linear` and `packed_linear` share."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from fastgen.reference.linear import ACTIVATIONS

NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}  # of csrc/cpu/linear.h
_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def kind(value: object) -> str:
    """What a message calls an argument that came."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype}" if value.layout == torch.strided else f"{value.layout} of {value.dtype}"


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor with strides."""
    return isinstance(value, Tensor) and value.layout == torch.strided


def number_of(activation: object) -> int | None:
    """The number of an activation, None if it is none."""
    return NUMBERS.get(activation) if isinstance(activation, str) else None


def check_activation(activation: object) -> None:
    """Refuse what is not the name of an activation."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, wanted one of {', '.join(ACTIVATIONS)}")


def check_addends(x: Tensor, outputs: int, bias: Tensor | None, residual: Tensor | None) -> None:
    """Refuse a bias that is not (outputs,) and a residual that is not (..., outputs) as x."""
    if bias is not None:
        _check_addend("bias", bias, _FLOATING, (outputs,), x.device)
    if residual is not None:
        _check_addend("residual", residual, (x.dtype,), (*x.shape[:-1], outputs), x.device)


def _check_addend(
    name: str,
    value: Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    if not is_dense(value) or value.dtype not in dtypes:
        wanted = "floating" if len(dtypes) > 1 else f"{dtypes[0]}"
        raise TypeError(f"{name} is {kind(value)}, wanted a dense {wanted} tensor")
    if value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted {shape}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, wanted {device} as x")

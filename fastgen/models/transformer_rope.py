"""Rotary positions: the angles' tables, and what the scalings of long contexts do to the frequencies.

Every scaling in use divides the frequencies by factors and, in one case, multiplies cosines and sines by a
number, so that is all a model has to keep.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SCALINGS = ("default", "linear", "llama3", "yarn")


def rope_tables(
    positions: int, head_size: int, theta: float, factors: list[float] | None, magnitude: float
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (positions, head_size / 2), float32, of the angles p theta^(-2i/D) / factors[i].

    Su et al. 2021, arXiv:2104.09864. The arithmetic is float32, as when such models are trained.
    """
    frequencies = _frequencies(head_size, theta)
    if factors is not None:
        frequencies = frequencies / torch.tensor(factors, dtype=torch.float32)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos() * magnitude, angles.sin() * magnitude


def scaling(given: dict[str, Any], head_size: int, theta: float, context: int) -> dict[str, Any]:
    """`rope_factors` and `rope_magnitude` of the scaling that a config.json describes.

    Args:
        given: `rope_scaling` or `rope_parameters` of transformers: its type and numbers.
        context: positions the model takes, for yarn without a factor.

    Raises:
        ValueError: a scaling or a number that fastgen does not know.
    """
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(f"the rope scaling is {kind!r}, wanted one of {', '.join(SCALINGS)}")
    if kind == "default":
        return {}
    try:
        return _FACTORS[kind](given, head_size, theta, context)
    except (KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"the rope scaling {given} is not complete: {error!r}") from None


def _frequencies(head_size: int, theta: float) -> Tensor:
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    return 1.0 / (theta**exponents)


def _linear(given: dict[str, Any], head_size: int, theta: float, context: int) -> dict[str, Any]:
    """Positions closer together: Chen et al. 2023, arXiv:2306.15595."""
    return {"rope_factors": [float(given["factor"])] * (head_size // 2)}


def _llama3(given: dict[str, Any], head_size: int, theta: float, context: int) -> dict[str, Any]:
    """Long waves are stretched, short ones stay, those between are blended: Llama 3.1's recipe."""
    factor, old = float(given["factor"]), float(given["original_max_position_embeddings"])
    low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
    turns = old * _frequencies(head_size, theta).double() / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return {"rope_factors": (1 / ((1 - smooth) / factor + smooth)).tolist()}


def _yarn(given: dict[str, Any], head_size: int, theta: float, context: int) -> dict[str, Any]:
    """Peng et al. 2023, arXiv:2309.00071: a ramp between stretched and unchanged, and a magnitude."""
    old = float(given.get("original_max_position_embeddings") or context)
    factor = float(given.get("factor") or context / old)
    if "mscale" in given or "mscale_all_dim" in given:
        raise ValueError("yarn with mscale is not known to fastgen")

    def dimension(turns: float) -> float:
        return head_size * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(float(given.get("beta_fast") or 32)), dimension(float(given.get("beta_slow") or 1))
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    ramp = (torch.arange(head_size // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    magnitude = given.get("attention_factor")
    if magnitude is None:
        magnitude = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return {
        "rope_factors": (1 / ((1 - kept) / factor + kept)).tolist(),
        "rope_magnitude": float(magnitude),
    }


_FACTORS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}

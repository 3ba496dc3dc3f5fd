"""The specification of `fastgen.ops.rbm_gibbs` in plain PyTorch: the library's sums, the contract's draws."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.random import Stream
from fastgen.reference import random


def draw_states(field: Tensor, words: Tensor) -> Tensor:
    """States of binary units with P(on) = 1 / (1 + exp(-field)), as bool.

    The unlikely state of a unit, on or off, has probability e / (1 + e), e = exp(-|field|), to 2**-31.

    Args:
        field: (B, n) of any floating dtype; read as float32.
        words: (B, n) int64 of 32-bit words.
    """
    field = field.float()
    likely_on = field >= 0
    e = random.exp_nonpositive(-field.abs())
    r = torch.where(likely_on, words ^ 0xFFFFFFFF, words) >> 1
    unlikely = (r.float() + 0.5) * (e + 1.0) < e * 2.0**31
    return likely_on ^ unlikely


def rbm_gibbs(
    v: Tensor,
    h: Tensor,
    weight: Tensor,
    v_bias: Tensor,
    h_bias: Tensor,
    beta: Tensor,
    clamp_mask: Tensor | None,
    half_steps: int,
    gaussian: bool,
    probabilities: bool,
    seed: int,
    sample_ids: Tensor,
    first_step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fastgen.ops.rbm_gibbs`; means that are not asked for, or were not computed, have no rows."""
    weight, beta = weight.to(v_bias.dtype), beta[:, None]
    v_mean, h_mean = v_bias.new_empty((0, v.shape[1])), h_bias.new_empty((0, h.shape[1]))
    for step in range(first_step, first_step + half_steps):
        if step % 2 == 0:
            field = beta * (h_bias + v.to(weight.dtype) @ weight)
            words = random.words(seed, sample_ids, step, h.shape[1], Stream.RBM_GIBBS)
            h = draw_states(field, words).to(h.dtype)
            h_mean = torch.sigmoid(field) if probabilities else h_mean
            continue
        mean = v_bias + h.to(weight.dtype) @ weight.T
        if gaussian:
            noise = random.normal(seed, sample_ids, step, v.shape[1], Stream.RBM_VISIBLE_NOISE)
            drawn = mean + noise / beta.sqrt()
        else:
            mean = beta * mean
            words = random.words(seed, sample_ids, step, v.shape[1], Stream.RBM_GIBBS)
            drawn = draw_states(mean, words)
            mean = torch.sigmoid(mean)
        v = drawn.to(v.dtype) if clamp_mask is None else torch.where(clamp_mask, v, drawn.to(v.dtype))
        v_mean = mean if probabilities else v_mean
    return v, h, v_mean, h_mean

"""Attention to a cache with `scaled_dot_product_attention`, as users of PyTorch write it."""

import torch
from torch.nn import functional as F

from fastgen.bench.case import Call, Inputs


def build(inputs: Inputs) -> Call:
    """Return the call for a cache that is full; several new positions of a longer cache take a mask."""
    q, keys, values = inputs["q"].to(inputs["keys"].dtype), inputs["keys"], inputs["values"]
    new, length = q.shape[2], keys.shape[2]
    mask = None
    if 1 < new < length:
        mask = torch.ones(new, length, dtype=torch.bool, device=q.device).tril(length - new)
    return lambda: F.scaled_dot_product_attention(
        q, keys, values, attn_mask=mask, is_causal=new == length > 1, enable_gqa=True
    )

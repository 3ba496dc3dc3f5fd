"""Drop-ins for PyTorch's `scaled_dot_product_attention` and `MultiheadAttention`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops import attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` by `fastgen.ops.attention`.

    Leading dimensions broadcast as there; is_causal aligns the first query with the first key. A query that
    sees no key gets zeros, and masked keys never enter, not even as NaN. Dropout draws its seed from torch's
    generator.

    Args:
        query: (..., Hq, L, D), or (L, D).
        key: (..., Hkv, S, D); without enable_gqa its leading dimensions broadcast with those of query.
        value: (..., Hkv, S, Dv).
        attn_mask: broadcast to (..., Hq, L, S); bool, True where a key is seen, or floating, added.
        dropout_p: 0 <= p < 1, applied whatever mode a module is in.
        is_causal: query i sees keys up to i. Not with attn_mask.
        scale: of the products; None is D**-0.5.
        enable_gqa: whether groups of query heads may share a head of keys.

    Returns:
        (..., Hq, L, Dv) in the dtype of query.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor) or x.dim() < 2:
            came = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} has {came}, wanted (..., heads, positions, size)")
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask came with is_causal=True, wanted one of the two")
    heads = key.shape[-3:-2] if enable_gqa else query.shape[-3:-2]
    leading = torch.broadcast_shapes(
        *(x.shape[:-3] if enable_gqa else x.shape[:-2] for x in (query, key, value))
    )
    if not enable_gqa and query.dim() > 2:
        leading, heads = leading[:-1], leading[-1:]
    queries = _four_dimensions(query, leading, query.shape[-3:-2] if enable_gqa else heads)
    keys, values = (_four_dimensions(x, leading, heads) for x in (key, value))
    additive = attn_mask is not None and attn_mask.is_floating_point()
    addend = None if attn_mask is None else _addend(attn_mask, leading)
    out = attention(
        queries,
        keys,
        values,
        causal="upper_left" if is_causal else None,
        bias=addend if additive else None,
        mask=None if additive else addend,
        scale=scale,
        dropout_p=dropout_p,
    )
    if len(leading) == 1 and heads:
        return out
    return out.reshape(*leading, *queries.shape[1:2] * len(heads), *out.shape[2:])


def _four_dimensions(x: Tensor, leading: torch.Size, heads: torch.Size) -> Tensor:
    """(B, H, L, D): leading dimensions as one, and one head where there is none."""
    if x.dim() == 4 and len(leading) == 1 and heads and x.shape[:2] == (*leading, *heads):
        return x
    wide = x.expand(*leading, *heads, *x.shape[-2:])
    return wide.reshape(leading.numel(), heads.numel(), *x.shape[-2:])


def _addend(mask: Tensor, leading: torch.Size) -> Tensor:
    """A mask whose leading dimensions are one, broadcast only where they must be."""
    if mask.dim() <= 4 and len(leading) <= 1:
        return mask
    *_, heads, queries, keys = (1, 1, *mask.shape)
    return mask.expand(*leading, heads, queries, keys).reshape(leading.numel(), heads, queries, keys)

"""Drop-ins for PyTorch's `scaled_dot_product_attention` and `MultiheadAttention`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.attention import attention
from fastgen.ops.linear import linear


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


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` computed by `fastgen.ops.attention` and `linear`.

    Arguments, parameters and state dictionaries are the same. The bits of a row of the result do not depend
    on the batch, on the threads, nor on padded keys; a query that sees no key gets the bias of `out_proj`,
    where PyTorch's may get NaN. With need_weights=False the matrix of weights is never made. Weights that are
    wanted while dropout is on come from PyTorch's own code. In evaluation without gradients
    `torch.nn.TransformerEncoderLayer` goes around its attention layer, whatever it is, unless
    `torch.backends.mha.set_fastpath_enabled(False)` was called.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from query to key and value.

        Args:
            query: (L, E), (L, N, E), or with batch_first (N, L, E).
            key: the same of S positions and kdim elements.
            value: the same of S positions and vdim elements.
            key_padding_mask: (N, S), or (S,) without a batch: bool, True where a key is left out, or
                floating, added to the scores.
            need_weights: return the weights too.
            attn_mask: (L, S) or (N * heads, L, S): bool, True where a key is not seen, or floating, added.
            average_attn_weights: whether weights are averaged over heads.
            is_causal: attn_mask is causal; with it alone it need not be read. Keys that add_bias_kv and
                add_zero_attn add are seen by all (PyTorch's hint hides them, its mask does not).

        Returns:
            The result in the shape of query, and the weights (N, L, S), or (N, heads, L, S), or None.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted.
        """
        dropout_p = self.dropout if self.training else 0.0
        options = (need_weights, attn_mask, average_attn_weights, is_causal)
        if need_weights and dropout_p:
            return super().forward(query, key, value, key_padding_mask, *options)
        batched = query.dim() == 3
        _check_sequences(self, query, key, value)
        _check_dtypes(attn_mask=attn_mask, key_padding_mask=key_padding_mask)
        places = key.shape[:-1] if self.batch_first or not batched else (key.shape[1], key.shape[0])
        if key_padding_mask is not None and key_padding_mask.shape != places:
            raise ValueError(
                f"key_padding_mask has shape {tuple(key_padding_mask.shape)}, wanted {tuple(places)}"
            )
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask is None with is_causal=True, wanted the causal mask itself too")
        causal = is_causal and key_padding_mask is None and not need_weights
        q, k, v = self._projected(query, key, value)
        mask, bias = self._merged(attn_mask if not causal else None, key_padding_mask, q.shape[0])
        if mask is not None or bias is not None:
            _check_fit(mask if mask is not None else bias, q, k)
        extra = (self.bias_k is not None) + self.add_zero_attn
        k, v = (self._lengthened(x, b) for x, b in ((k, self.bias_k), (v, self.bias_v)))
        if extra and mask is not None:
            mask = torch.nn.functional.pad(mask, (0, extra), value=True)
        if extra and bias is not None:
            bias = torch.nn.functional.pad(bias, (0, extra))
        if extra and causal:  # what was added at the end is seen by all
            causal, mask = False, _causal_with(q.shape[2], k.shape[2], extra, q.device)
        out, lse = attention(
            q,
            k,
            v,
            causal="upper_left" if causal else None,
            mask=mask,
            bias=bias,
            dropout_p=dropout_p,
            return_lse=True,
        )
        out = out.transpose(1, 2).flatten(2)
        out = linear(out, self.out_proj.weight, self.out_proj.bias)
        weights = _weights(q, k, mask, bias, lse) if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values (N, heads, positions, size)."""
        biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.chunk(3))
        if query is key and key is value and self.in_proj_weight is not None:
            three = linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self.in_proj_weight is not None:
                weights = self.in_proj_weight.chunk(3)
            given = zip((query, key, value), weights, biases, strict=True)
            three = tuple(linear(x, weight, bias) for x, weight, bias in given)
        if query.dim() == 2:
            three = tuple(x[None] for x in three)
        elif not self.batch_first:
            three = tuple(x.transpose(0, 1) for x in three)
        return [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in three]

    def _lengthened(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values with the learned one and the one of zeros behind them."""
        pieces = [x]
        if bias is not None:
            pieces.append(bias.view(1, self.num_heads, 1, self.head_dim).expand(len(x), -1, -1, -1))
        if self.add_zero_attn:
            pieces.append(x.new_zeros((*x.shape[:2], 1, x.shape[3])))
        return torch.cat(pieces, 2) if len(pieces) > 1 else x

    def _merged(
        self, attn_mask: Tensor | None, padding: Tensor | None, batch: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """What is seen, and what is added, of both masks."""
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (batch, self.num_heads))
        if padding is not None:
            padding = padding.reshape(batch, 1, 1, -1)
        given = [x for x in (attn_mask, padding) if x is not None]
        seen = [~x for x in given if x.dtype == torch.bool]
        added = [x for x in given if x.dtype != torch.bool]
        mask = None if not seen else seen[0] if len(seen) == 1 else seen[0] & seen[1]
        return mask, None if not added else added[0] if len(added) == 1 else added[0] + added[1]


def _check_sequences(layer: MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> None:
    sizes = (layer.embed_dim, layer.kdim, layer.vdim)
    for name, x, size in zip(("query", "key", "value"), (query, key, value), sizes, strict=True):
        if x.dim() not in (2, 3) or x.dim() != query.dim() or x.shape[-1] != size:
            wanted = f"{query.dim() if x is not query else '2 or 3'} dimensions, the last of {size}"
            raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted {wanted}")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"value has shape {tuple(value.shape)}, wanted the positions of key, {key.shape[:-1]}"
        )


def _check_dtypes(**masks: Tensor | None) -> None:
    for name, mask in masks.items():
        if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"{name} is {mask.dtype}, wanted bool, True where a key is left out, or floating")


def _check_fit(mask: Tensor | None, q: Tensor, k: Tensor) -> None:
    if mask is not None and mask.shape[-1] != k.shape[2]:
        raise ValueError(f"a mask is of {mask.shape[-1]} keys, wanted {k.shape[2]}")


def _causal_with(queries: int, keys: int, extra: int, device: torch.device) -> Tensor:
    place, key = torch.arange(queries, device=device), torch.arange(keys, device=device)
    return (key <= place[:, None]) | (key >= keys - extra)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, bias: Tensor | None, lse: Tensor) -> Tensor:
    """(N, heads, L, S): exp(scores - lse), 0 where nothing is seen."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    total = lse[..., None].to(scores.dtype)
    return torch.exp(scores - total.masked_fill(total == -torch.inf, 0))

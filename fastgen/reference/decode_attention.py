"""The specification of `fastgen.ops.decode_attention` in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    query_starts: Tensor | None,
    block_table: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """See `fastgen.ops.decode_attention`; q is packed, (T, Hq, D). Returns out and lse (T, Hq)."""
    sequences = len(lengths)
    starts = uniform_starts(q, sequences) if query_starts is None else query_starts.tolist()
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf, dtype=wide)
    for s, length in enumerate(lengths.tolist()):
        new = slice(starts[s], starts[s + 1])
        if length == 0 or new.start == new.stop:
            continue
        k, v = (_rows(cache, s, length, block_table).to(wide) for cache in (keys, values))
        group = q.shape[1] // k.shape[0]
        scores = torch.einsum("thd,hkd->htk", q[new].to(wide), k.repeat_interleave(group, 0)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        seen = _seen(new.stop - new.start, length, window, q.device)
        scores = scores.masked_fill(~seen, -torch.inf)
        lse[new] = torch.logsumexp(scores, -1).T
        weights = torch.softmax(scores, -1).masked_fill(~seen, 0)
        out[new] = _mix(weights, v.repeat_interleave(group, 0), seen).to(q.dtype)
    return out, lse


def uniform_starts(q: Tensor, sequences: int) -> list[int]:
    """Where each sequence's queries begin when all have as many."""
    each = q.shape[0] // max(sequences, 1)
    return [each * s for s in range(sequences + 1)]


def _rows(cache: Tensor, sequence: int, length: int, block_table: Tensor | None) -> Tensor:
    """The first `length` rows of a sequence, (Hkv, length, D)."""
    if block_table is None:
        return cache[sequence, :, :length]
    pages = block_table[sequence, : -(-length // cache.shape[2])].long()
    return cache[pages].transpose(0, 1).flatten(1, 2)[:, :length]


def _seen(new: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """(new, length): which keys each of the last `new` positions attends to."""
    position = torch.arange(length - new, length, device=device)[:, None]
    key = torch.arange(length, device=device)
    seen = key <= position
    return seen if window is None else seen & (key > position - window)


def _mix(weights: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Weights (H, T, K) times v (H, K, D), (T, H, D); what is not seen plays no part, even if it is NaN."""
    if bool(torch.isfinite(v).all()):
        return torch.einsum("htk,hkd->thd", weights, v)
    terms = weights[..., None] * v[:, None]
    return torch.where(seen[..., None], terms, 0).sum(2).transpose(0, 1)

"""The specification of `fastgen.ops.attention` in plain PyTorch; its gradients are autograd's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgen.random import Stream
from fastgen.reference.random import philox

HEAD_BITS = 24  # of a dropout word's element: the key stands below, the head above


def visible(queries: int, keys: int, causal: str, window: int, device: torch.device) -> Tensor:
    """(L, S) bool: which keys a query sees by their places alone."""
    place = torch.arange(queries, device=device)[:, None]
    place = place + (keys - queries if causal == "lower_right" else 0)
    key = torch.arange(keys, device=device)
    seen = (key <= place) if causal != "none" else torch.ones_like(key <= place)
    return seen & ((place - key).abs() < window) if window else seen


def kept(seed: int, sample_ids: Tensor, heads: int, queries: int, keys: int, p: float) -> Tensor:
    """(B, H, L, S) bool: what dropout leaves. Query i is the step, head * 2**24 + key the element."""
    blocks = torch.arange((keys + 3) // 4, device=sample_ids.device)
    head = torch.arange(heads, device=sample_ids.device)[:, None, None]
    sample = sample_ids[:, None, None, None]
    words = philox(
        [
            (head << (HEAD_BITS - 2)) + blocks,
            torch.arange(queries, device=sample_ids.device)[:, None],
            sample & 0xFFFFFFFF,
            (Stream.DROPOUT << 24) | ((sample >> 32) & 0xFFFFFF),
        ],
        (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF),
    )
    shape = (len(sample_ids), heads, queries, len(blocks))
    drawn = torch.stack([word.expand(shape) for word in words], -1).flatten(-2)[..., :keys]
    return drawn >= math.ceil(p * 2.0**32)


def finite(x: Tensor) -> Tensor:
    """x with 0 for what is not finite."""
    return x.where(x.isfinite(), 0)


def poison(x: Tensor) -> Tensor:
    """0 for a finite row of x, NaN for another."""
    return torch.where(x.isfinite().all(-1), 0.0, torch.nan).to(x.dtype)


def scores_of(q: Tensor, k: Tensor, bias: Tensor | None, seen: Tensor, softcap: float) -> Tensor:
    """(B, H, L, S): what softmax takes, -inf where a key is not seen; q is scaled already."""
    scores = finite(q) @ finite(k).mT + poison(q)[..., :, None] + poison(k)[..., None, :]
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.where(bias != -torch.inf, 0)
    return scores.masked_fill(~seen, -torch.inf)


def mix(weights: Tensor, v: Tensor) -> Tensor:
    """weights @ v, in which a weight of zero keeps out NaN and infinity too."""
    mixed = weights @ finite(v)
    strange = v.detach().where(~v.isfinite(), 0)
    for key in strange.ne(0).any(-1).flatten(0, -2).any(0).nonzero().flatten().tolist():
        enters = weights[..., key, None] != 0
        mixed = mixed + torch.where(enters, strange[..., key, None, :], 0)
    return mixed


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    causal: str,
    window: int,
    softcap: float,
    scale: float,
    dropout_p: float,
    seed: int,
    sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(B, H, L, Dv) and the log-sum-exp (B, H, L) of sequences of one length."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads, queries, group = q.shape[1], q.shape[2], q.shape[1] // k.shape[1]
    k, v = (x.to(wide).repeat_interleave(group, 1) for x in (k, v))
    seen = visible(queries, k.shape[2], causal, window, q.device)
    seen = seen if mask is None else seen & mask
    seen = seen if bias is None else seen & (bias != -torch.inf)
    scores = scores_of(q.to(wide) * scale, k, bias, seen, softcap)
    hidden = scores == -torch.inf
    nothing = scores.new_full((*q.shape[:3], 1), -torch.inf)
    highest = torch.cat([nothing, scores.detach()], -1).amax(-1, keepdim=True)
    highest = highest.where(highest != -torch.inf, 0)
    weights = torch.exp(scores - highest).masked_fill(hidden, 0)
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    weights = weights / total
    if dropout_p:
        assert sample_ids is not None
        left = kept(seed, sample_ids, heads, queries, k.shape[2], dropout_p)
        weights = (weights / (1 - dropout_p)).where(left, 0)
    lse = (highest + torch.log(total)).masked_fill(empty, -torch.inf).squeeze(-1)
    return mix(weights, v).to(q.dtype), lse


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    query_starts: Tensor | None,
    key_starts: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """See `fastgen.ops.attention`; packed sequences one after the other."""
    if query_starts is None or key_starts is None:
        out, lse = attend(q, k, v, bias, mask, *options)
        return out.transpose(1, 2).contiguous().transpose(1, 2), lse
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    outs, sums = [q[:0, :, :1].expand(0, -1, v.shape[2])], [q[:0, :, 0].to(wide)]
    query_ends, key_ends = query_starts.tolist(), key_starts.tolist()
    for b in range(len(query_ends) - 1):
        queries, keys = slice(*query_ends[b : b + 2]), slice(*key_ends[b : b + 2])
        one, two, three = (x.transpose(0, 1)[None] for x in (q[queries], k[keys], v[keys]))
        ids = None if options[-1] is None else options[-1][b : b + 1]
        out, lse = attend(one, two, three, None, None, *options[:-1], ids)  # type: ignore[call-arg]
        outs.append(out[0].transpose(0, 1))
        sums.append(lse[0].transpose(0, 1))
    return torch.cat(outs), torch.cat(sums)


def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and bias (empty without one), given those of what `attention` returns."""
    with torch.inference_mode(False), torch.enable_grad():
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        addend = None if bias is None else bias.clone().requires_grad_()
        outputs = attention(*given, addend, *(x.clone() if isinstance(x, Tensor) else x for x in rest))
        leaves = given if addend is None else [*given, addend]
        grads = torch.autograd.grad(outputs, leaves, (grad_out.clone(), grad_lse.clone()), allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]
    return found[0], found[1], found[2], found[3] if addend is not None else q.new_empty(0)

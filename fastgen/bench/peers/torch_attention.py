"""Attention as users of PyTorch write it: scaled_dot_product_attention, with a loop over packed sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.bench.case import Call, Inputs
from fastgen.bench.peers.compiling import compiled

GRADIENTS = ("q", "k", "v", "bias")


def _mask_of(inputs: Inputs) -> Tensor | None:
    """What PyTorch takes one of: a bool mask or an additive one; a window is a mask here."""
    mask, bias = inputs.get("mask"), inputs.get("bias")
    queries, keys = inputs["q"].shape[-2], inputs["k"].shape[-2]
    if inputs.get("window") is not None:
        place, key = torch.arange(queries)[:, None], torch.arange(keys)
        near = (key <= place) & (place - key < inputs["window"])
        mask = near if mask is None else mask & near
    if bias is None or mask is None:
        return mask if bias is None else bias
    return bias.masked_fill(~mask, -torch.inf)


def _one(inputs: Inputs) -> Tensor:
    mask = _mask_of(inputs)
    return F.scaled_dot_product_attention(
        inputs["q"],
        inputs["k"],
        inputs["v"],
        attn_mask=mask,
        is_causal=inputs.get("causal") is not None and mask is None,
        enable_gqa=inputs["q"].shape[1] != inputs["k"].shape[1],
    )


def _packed(inputs: Inputs) -> Tensor:
    ends, outs = inputs["query_starts"].tolist(), []
    for first, last in itertools.pairwise(ends):
        q, k, v = (inputs[name][first:last].transpose(0, 1)[None] for name in ("q", "k", "v"))
        causal, grouped = inputs["causal"] is not None, q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def _attend(inputs: Inputs) -> Tensor:
    return _one(inputs) if inputs.get("query_starts") is None else _packed(inputs)


def with_gradients(attend: Callable[[Inputs], Tensor], inputs: Inputs) -> Call:
    """The call of `attend`, or, where the inputs hold a gradient, of it and of its backward pass."""
    if "grad" not in inputs:
        return lambda: attend(inputs)
    given = {name: x for name, x in inputs.items() if name != "grad"}
    with torch.inference_mode(False):
        leaves = {name: given[name].clone().requires_grad_() for name in GRADIENTS if name in given}
        grad = inputs["grad"].clone()

    def run() -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            out = attend(given | leaves)
            return (out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad))

    return run


def build(inputs: Inputs, *, compile: bool = False) -> Call:
    """Return the call that computes attention, and the gradients where inputs want them."""
    return with_gradients(compiled(_attend) if compile else _attend, inputs)


def layer(inputs: Inputs, kind: type[torch.nn.MultiheadAttention] = torch.nn.MultiheadAttention) -> Call:
    """Return the call of a layer of `kind` on one sequence for all three, without weights."""
    attend = kind(inputs["x"].shape[-1], inputs["heads"], batch_first=True)
    attend.load_state_dict(inputs["state"])
    x, padding = inputs["x"], inputs["padding"]
    attend.to(x.device)

    def run() -> Tensor:
        with torch.no_grad():
            out: Tensor = attend(x, x, x, key_padding_mask=padding, need_weights=False)[0]
            return out.masked_fill(padding[..., None], 0)  # of padded queries PyTorch makes something else

    return run

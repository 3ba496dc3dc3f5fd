"""Block Gibbs sampling of a Bernoulli-Bernoulli RBM in PyTorch, with and without `torch.compile`.

It is written in two ways: with `torch.bernoulli`, as in most code, and comparing uniforms with the
probabilities, which measured faster on a CPU. Compiled, ten steps a call are faster than one.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastgen.bench.case import Call, Inputs
from fastgen.bench.peers.compiling import compiled

State = tuple[Tensor, Tensor]


def by_bernoulli(logits: Tensor) -> Tensor:
    """Return 1 with probability sigmoid(logits), else 0, in their dtype."""
    return torch.bernoulli(torch.sigmoid(logits.float())).to(logits.dtype)


def by_comparison(logits: Tensor) -> Tensor:
    """Return the same, from uniforms; they are float32 in any case."""
    probability = torch.sigmoid(logits.float())
    return (torch.rand_like(probability) < probability).to(logits.dtype)


def gibbs(
    v: Tensor,
    h: Tensor,
    weight: Tensor,
    v_bias: Tensor,
    h_bias: Tensor,
    steps: int,
    clamp_mask: Tensor | None = None,
    clamp_values: Tensor | None = None,
    draw: Callable[[Tensor], Tensor] = by_comparison,
) -> State:
    """Run `steps` times: hidden units given the visible ones, then visible given hidden."""
    for _ in range(steps):
        h = draw(linear(v, weight.t(), h_bias))
        v = draw(linear(h, weight, v_bias))
        if clamp_mask is not None and clamp_values is not None:
            v = torch.where(clamp_mask, clamp_values, v)
    return v, h


def build(inputs: Inputs, *, compile: bool = False, draw: Callable[[Tensor], Tensor] = by_comparison) -> Call:
    """Return the run of `inputs["half_steps"]` / 2 steps."""
    steps = inputs["half_steps"] // 2
    block = min(steps, 10)
    if steps % block:
        raise ValueError(f"steps must be at most 10 or a multiple of 10, got {steps}")
    run_block = compiled(gibbs) if compile else gibbs
    dtype = inputs["weight"].dtype
    start = inputs["v"].to(dtype), inputs["h"].to(dtype)
    fixed = {name: inputs[name].to(dtype) for name in ("weight", "v_bias", "h_bias")}
    if "clamp_mask" in inputs:
        fixed |= {"clamp_mask": inputs["clamp_mask"], "clamp_values": inputs["clamp_values"].to(dtype)}

    def run() -> State:
        v, h = start
        for _ in range(steps // block):
            v, h = run_block(v, h, steps=block, draw=draw, **fixed)
        return v, h

    return run

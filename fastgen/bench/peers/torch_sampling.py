"""Drawing tokens as one writes it in PyTorch: penalties by scatter, top-p by a sort, multinomial."""

import torch
from torch import Tensor

from fastgen.bench.case import Call, Inputs
from fastgen.bench.peers.compiling import compiled


def _penalized(logits: Tensor, inputs: Inputs) -> Tensor:
    bias, output = inputs["logit_bias"], inputs["output_tokens"]
    logits = logits if bias is None else logits + bias
    if output is None:
        return logits
    counts = torch.zeros_like(logits).scatter_add_(1, output, torch.ones_like(output, dtype=logits.dtype))
    seen, penalty = counts > 0, inputs["repetition_penalty"]
    logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    return logits - inputs["frequency_penalty"] * counts - inputs["presence_penalty"] * seen


def _filtered(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    if top_k:
        border = logits.topk(top_k).values[:, -1:]
        logits = torch.where(logits < border, -torch.inf, logits)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probability = ordered.softmax(1)
        ordered = torch.where(probability.cumsum(1) - probability >= top_p, -torch.inf, ordered)
        logits = torch.empty_like(logits).scatter_(1, order, ordered)
    if min_p > 0:
        probability = logits.softmax(1)
        logits = torch.where(probability < min_p * probability.amax(1, keepdim=True), -torch.inf, logits)
    return logits


def build(inputs: Inputs, *, compile: bool = False) -> Call:
    """Return the call that draws the tokens (B, 1)."""

    def draw(logits: Tensor) -> Tensor:
        logits = _penalized(logits, inputs) / inputs["temperature"]
        logits = _filtered(logits, inputs["top_k"], inputs["top_p"], inputs["min_p"])
        return torch.multinomial(logits.softmax(1), 1)

    run = compiled(draw) if compile else draw
    return lambda: run(inputs["logits"])

"""Flows of every family with random weights, conditions and data for them."""

import pytest
import torch

from fastgen.backends import usable
from fastgen.models import IAF, MAF, NSF, Flow, Glow, RealNVP

OPS = ("linear", "affine_coupling", "rq_spline", "invertible_linear", "made_inverse")
NATIVE = pytest.mark.skipif(
    not all(usable(op, "native", "cpu") for op in OPS), reason="references add in torch's order"
)


# name: a model of random weights


MODELS = {
    "RealNVP": lambda: RealNVP(5, steps=4, hidden=(32, 16)),
    "RealNVP halves exp": lambda: RealNVP((5,), steps=2, hidden=(16,), mask="halves", scale_map="exp"),
    "RealNVP context": lambda: RealNVP(4, steps=2, hidden=(16,), context=3),
    "RealNVP images": lambda: RealNVP((1, 4, 4), steps=2, hidden=(16,), levels=17),
    "NSF": lambda: NSF(5, steps=3, hidden=16),
    "NSF classes": lambda: NSF((2, 2), steps=2, hidden=16, classes=4),
    "NSF autoregressive": lambda: NSF(5, kind="autoregressive", steps=2, hidden=16),
    "NSF autoregressive context": lambda: NSF(4, kind="autoregressive", steps=2, hidden=16, context=2),
    "MAF": lambda: MAF(5, steps=2, hidden=16),
    "MAF classes": lambda: MAF(4, steps=2, hidden=16, residual=False, order="random", classes=3),
    "IAF context": lambda: IAF(5, steps=2, hidden=16, context=2),
    "Glow": lambda: Glow((3, 4, 4), scales=2, steps=2, hidden=8),
    "Glow prior": lambda: Glow((1, 4, 4), scales=2, steps=1, hidden=8, classes=3, conditional_prior=True),
    "Glow classes": lambda: Glow((1, 8, 4), scales=2, steps=2, hidden=8, classes=3, levels=0),
    "Glow sigmoid": lambda: Glow((2, 4, 4), scales=1, steps=2, hidden=8, scale_map="sigmoid", levels=5),
}  # fmt: skip


def randomised(model: Flow, scale: float = 0.1, seed: int = 0) -> Flow:
    """The model in evaluation mode, with weights that are not what it starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    for name, buffer in model.named_buffers():
        if name.endswith("initialised"):
            buffer.fill_(True)
    return model.eval()


def made(name: str) -> Flow:
    torch.manual_seed(3)
    return randomised(MODELS[name]())


def conditions(model: Flow, rows: int) -> torch.Tensor | None:
    if model.class_count:
        return torch.arange(rows) % model.class_count
    if not model.context_features:
        return None
    return torch.randn(rows, model.context_features, generator=torch.Generator().manual_seed(rows))


def some(model: Flow, rows: int) -> torch.Tensor:
    """Data that the model can look at; images as real numbers."""
    generator = torch.Generator().manual_seed(5)
    draw = torch.rand if model.dequantization else torch.randn
    return draw(rows, *model.shape, generator=generator, dtype=torch.float64)

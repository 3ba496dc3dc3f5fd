"""Flows as the users of nflows, zuko and normflows build them, and what they wait for.

Each is called the same before and after `fastgen.accelerate`; samples start from the same noise.
"""

from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Inputs


def inputs(build: Any, device: str) -> Inputs:
    """The flow that `build()` returns, its weights away from the zeros of some layers, and its copy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = build().to(device).eval()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.002)
    return {"flow": flow, "fast": fastgen.accelerate(flow)[0], "device": device}


def plain(inputs: Inputs, run: Any) -> Call:
    """Return the call of the library."""
    return lambda: _quietly(run, inputs["flow"], inputs["device"])


def accelerated(inputs: Inputs, run: Any) -> Call:
    """Return the same call of the accelerated copy."""
    return lambda: _quietly(run, inputs["fast"], inputs["device"])


def _quietly(run: Any, flow: Any, device: str) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        return run(flow, device)


def nflows_nsf() -> Any:
    """Coupling splines of 32 features: 5 layers of 8 bins with residual networks of 128 units."""
    from nflows import distributions, flows, transforms  # noqa: PLC0415 (an optional extra)
    from nflows.nn import nets  # noqa: PLC0415

    layers: list[Any] = []
    for _ in range(5):
        layers.append(transforms.RandomPermutation(32))
        layers.append(
            transforms.PiecewiseRationalQuadraticCouplingTransform(
                torch.arange(32) % 2, lambda i, o: nets.ResidualNet(i, o, 128), 8, "linear", 3.0
            )
        )
    return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([32]))


def nflows_maf() -> Any:
    """One masked autoregressive layer of 64 features with two hidden layers of 256 units after the first."""
    from nflows import distributions, flows, transforms  # noqa: PLC0415 (an optional extra)

    maf = transforms.MaskedAffineAutoregressiveTransform(64, 256, num_blocks=2, use_residual_blocks=False)
    return flows.Flow(maf, distributions.StandardNormal([64]))


def zuko_maf() -> Any:
    """One masked autoregressive layer of 64 features with two hidden layers of 256 units."""
    from zuko import flows  # noqa: PLC0415 (an optional extra)

    return flows.MAF(64, transforms=1, hidden_features=(256, 256))


def zuko_nsf() -> Any:
    """One autoregressive spline layer of 32 features with two hidden layers of 256 units."""
    from zuko import flows  # noqa: PLC0415 (an optional extra)

    return flows.NSF(32, transforms=1, hidden_features=(256, 256))


def normflows_glow() -> Any:
    """Glow for images of 3 x 32 x 32: 3 levels of 16 steps with convolutions of 64 channels."""
    import normflows  # noqa: PLC0415 (an optional extra)
    from normflows import distributions, flows  # noqa: PLC0415

    bases, levels = [], []
    for channels, shape in ((48, (48, 4, 4)), (24, (12, 8, 8)), (12, (6, 16, 16))):
        levels.append([flows.GlowBlock(channels, 64) for _ in range(16)] + [flows.Squeeze()])
        bases.append(distributions.DiagGaussian(shape))
    merges = [flows.Merge(), flows.Merge()]
    flow = normflows.MultiscaleFlow(bases, levels, merges, class_cond=False)
    for module in flow.modules():
        if isinstance(module, flows.ActNorm):
            module.data_dep_init_done.fill_(1)
    return flow


def nflows_log_prob(flow: Any, device: str) -> Tensor:
    """Log-densities of 1,024 points of 32 features."""
    return flow.log_prob(torch.randn(1024, 32).to(device))


def nflows_sample(flow: Any, device: str) -> Tensor:
    """512 samples."""
    return flow.sample(512)


def zuko_sample(flow: Any, device: str) -> Tensor:
    """512 samples."""
    return flow().sample((512,))


def normflows_sample(flow: Any, device: str) -> Tensor:
    """16 samples."""
    return flow.sample(16)[0]

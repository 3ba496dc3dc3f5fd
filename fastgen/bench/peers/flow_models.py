"""Whole flows as the users of nflows, zuko and normflows build them, of the sizes that a case names."""

from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Inputs
from fastgen.models import Glow
from fastgen.nn import SplineCoupling
from fastgen.nn.networks import ResidualMLP


def nflows_nsf(inputs: Inputs) -> Call:
    """Return the call of nflows' `log_prob`, of a flow with the weights of the model in `inputs`."""
    from nflows import distributions, flows, transforms  # noqa: PLC0415 (an optional extra)

    model, x = inputs["model"], inputs["x"]
    layers: list[Any] = []
    for layer in list(model.flow.layers)[1:]:  # the first one normalises, which was left at the identity
        layers.append(
            _nflows_coupling(layer)
            if isinstance(layer, SplineCoupling)
            else transforms.Permutation(layer.order)
        )
    flow = flows.Flow(
        transforms.CompositeTransform(layers), distributions.StandardNormal([model.dimensions])
    ).to(x.device, x.dtype)
    flow.eval()
    return lambda: flow.log_prob(x)


def _nflows_coupling(ours: SplineCoupling) -> Any:
    from nflows.nn import nets  # noqa: PLC0415 (an optional extra)
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform  # noqa: PLC0415

    network, bins = ours.network, ours.bins
    assert isinstance(network, ResidualMLP)
    hidden, blocks = network.first.out_features, len(network.blocks) // 2
    mask = torch.ones(len(ours.indices))
    mask[ours.indices[: ours.passed]] = 0
    theirs = PiecewiseRationalQuadraticCouplingTransform(
        mask,
        lambda inputs, outputs: nets.ResidualNet(inputs, outputs, hidden_features=hidden, num_blocks=blocks),
        num_bins=bins,
        tails="linear",
        tail_bound=ours.bound,
    )
    net = theirs.transform_net
    pairs = [(net.initial_layer, network.first), (net.final_layer, network.last)]
    inner = [linear for block in net.blocks for linear in block.linear_layers]
    pairs += list(zip(inner, network.blocks, strict=True))
    with torch.no_grad():
        for copy, linear in pairs:
            copy.weight.copy_(linear.weight)
            copy.bias.copy_(linear.bias)
        # nflows divides widths and heights by sqrt(hidden), and ours adds the derivatives of the identity.
        weight = net.final_layer.weight.unflatten(0, (-1, 3 * bins - 1))
        bias = net.final_layer.bias.unflatten(0, (-1, 3 * bins - 1))
        for parameter in (weight, bias):
            parameter[:, : 2 * bins] *= hidden**0.5
        bias += ours.identity(bias)
    return theirs


def zuko_nsf(features: int, layers: int, hidden: int, bins: int) -> Any:
    """Return zuko's NSF whose layers couple two halves, in evaluation mode."""
    from zuko import flows  # noqa: PLC0415 (an optional extra)

    return flows.NSF(
        features, transforms=layers, hidden_features=(hidden, hidden), bins=bins, passes=2
    ).eval()


def zuko_log_prob(inputs: Inputs) -> Call:
    """Return the call of zuko's `log_prob`."""
    flow, x = inputs["flow"], inputs["x"]
    return lambda: flow().log_prob(x)


def accelerated_log_prob(inputs: Inputs) -> Call:
    """Return the call of the same flow's `log_prob` after `fastgen.accelerate`."""
    flow, _ = fastgen.accelerate(inputs["flow"])
    x = inputs["x"]
    return lambda: flow().log_prob(x)


def normflows_glow(inputs: Inputs) -> Call:
    """Return the call that samples a Glow of normflows, built as its examples build it, as it starts.

    Its couplings then change nothing and its convolutions are rotations, as in the model of `inputs`: both
    give standard normal numbers, by the same work.
    """
    import normflows  # noqa: PLC0415 (an optional extra)
    from normflows import distributions, flows  # noqa: PLC0415

    model: Glow = inputs["model"]
    (channels, height, width), given = model.shape, model.config
    scales, steps, rows = given["scales"], given["steps"], inputs["rows"]
    bases, layers, merges = [], [], []
    for i in range(scales):
        inside = channels * 2 ** (scales + 1 - i)
        blocks = [
            flows.GlowBlock(inside, given["hidden"], split_mode="channel", scale_map="exp")
            for _ in range(steps)
        ]
        layers.append([*blocks, flows.Squeeze()])
        side = 2 ** (scales - i)
        if i > 0:
            merges.append(flows.Merge())
            shape = (inside // 2, height // side, width // side)
        else:
            shape = (inside, height // side, width // side)
        bases.append(distributions.DiagGaussian(shape))
    flow = normflows.MultiscaleFlow(bases, layers, merges).eval()
    for module in flow.modules():
        if isinstance(module, flows.ActNorm):
            module.data_dep_init_done.fill_(1)

    def run() -> Tensor:
        with torch.no_grad():
            return flow.sample(rows)[0]

    return run

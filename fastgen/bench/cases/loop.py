"""Whole models: what a user waits for, with all that lies between the ops."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs
from fastgen.bench.matching import close, statistical
from fastgen.bench.peers import accelerated_flows, flow_models
from fastgen.models import NSF, Flow, Glow
from fastgen.nn import ActNorm

NSF_SIZES = {"features": 32, "layers": 5, "hidden": 128, "bins": 8}
POINTS = 1024
NSF_NAME = "NSF log_prob {} x {features}, {layers} layers, hidden {hidden}, {bins} bins".format(
    POINTS, **NSF_SIZES
)


def _points(device: str) -> Tensor:
    return torch.randn(POINTS, NSF_SIZES["features"], generator=torch.Generator().manual_seed(1)).to(device)


def _moved(model: Flow) -> Flow:
    """The model in evaluation mode, its weights away from the zeros that the last layers start with."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".last." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _nsf(device: str) -> Inputs:
    sizes = NSF_SIZES
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NSF(sizes["features"], steps=sizes["layers"], hidden=sizes["hidden"], bins=sizes["bins"])
    return {"model": _moved(model).to(device), "x": _points(device)}


def _log_prob(inputs: Inputs) -> Call:
    return lambda: inputs["model"].log_prob(inputs["x"])


def _zuko(device: str) -> Inputs:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"flow": flow_models.zuko_nsf(**NSF_SIZES).to(device), "x": _points(device)}


def _glow(rows: int, hidden: int, device: str) -> Inputs:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Glow((3, 32, 32), scales=3, steps=16, hidden=hidden, levels=0).eval()
    for layer in model.modules():
        if isinstance(layer, ActNorm):
            layer.initialised.fill_(True)
    return {"model": model.to(device), "rows": rows}


def _samples(inputs: Inputs) -> Call:
    ids = torch.arange(inputs["rows"])
    return lambda: inputs["model"].sample(ids, seed=0)


def _glow_case(rows: int, hidden: int) -> Case:
    same = statistical(
        mean=lambda x: x.flatten(1).mean(1),
        square=lambda x: x.flatten(1).square().mean(1),
        neighbours=lambda x: (x[..., 1:] * x[..., :-1]).flatten(1).mean(1),
    )
    return Case(
        op="loop",
        name=f"Glow sampling B {rows}, 3x32x32, 3 levels x 16 steps, hidden {hidden}",
        inputs=partial(_glow, rows, hidden),
        fastgen=_samples,
        peers=(Peer("normflows", flow_models.normflows_glow, same, missing=needs("normflows")),),
        work=Work(items=rows, item="images"),
    )


def _accelerated_case(library: str, what: str, items: int, item: str, build: Any, run: Any) -> Case:
    """A flow of a library against its copy after `fastgen.accelerate`, from the same noise."""
    peer = partial(accelerated_flows.plain, run=run)
    return Case(
        op="loop",
        name=f"accelerated {library} {what}",
        inputs=partial(accelerated_flows.inputs, build),
        fastgen=partial(accelerated_flows.accelerated, run=run),
        peers=(Peer(library, peer, close(1e-3, 1e-3), missing=needs(library)),),
        work=Work(items=items, item=item),
    )


_ACCELERATED = (
    _accelerated_case(
        "nflows",
        "NSF log_prob 1024 x 32, 5 layers, hidden 128, 8 bins",
        1024,
        "points",
        accelerated_flows.nflows_nsf,
        accelerated_flows.nflows_log_prob,
    ),
    _accelerated_case(
        "nflows",
        "MAF sampling 512 x 64, hidden 256 x 2",
        512,
        "samples",
        accelerated_flows.nflows_maf,
        accelerated_flows.nflows_sample,
    ),
    _accelerated_case(
        "zuko",
        "MAF sampling 512 x 64, hidden 256 x 2",
        512,
        "samples",
        accelerated_flows.zuko_maf,
        accelerated_flows.zuko_sample,
    ),
    _accelerated_case(
        "zuko",
        "NSF (autoregressive) sampling 512 x 32, hidden 256 x 2",
        512,
        "samples",
        accelerated_flows.zuko_nsf,
        accelerated_flows.zuko_sample,
    ),
    _accelerated_case(
        "normflows",
        "Glow sampling B 16, 3x32x32, 3 levels x 16 steps, hidden 64",
        16,
        "images",
        accelerated_flows.normflows_glow,
        accelerated_flows.normflows_sample,
    ),
)

CASES = (
    Case(
        op="loop",
        name=NSF_NAME,
        inputs=_nsf,
        fastgen=_log_prob,
        peers=(Peer("nflows", flow_models.nflows_nsf, close(1e-4, 1e-3), missing=needs("nflows")),),
        work=Work(items=POINTS, item="points"),
    ),
    Case(
        op="loop",
        name=f"zuko {NSF_NAME}",
        inputs=_zuko,
        fastgen=flow_models.accelerated_log_prob,
        peers=(Peer("zuko", flow_models.zuko_log_prob, close(1e-4, 1e-3), missing=needs("zuko")),),
        work=Work(items=POINTS, item="points"),
    ),
    _glow_case(16, 64),
    _glow_case(16, 256),
    *_ACCELERATED,
)

"""Invertible 1x1 convolutions of the sizes of Glow, and of vectors; W is a rotation.

`bytes` counts x and y, `flops` the product.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs
from fastgen.bench.matching import close
from fastgen.bench.peers import pixel_products
from fastgen.tolerances import MATCH

Product = Callable[..., tuple[Tensor, Tensor]]


def _inputs(shape: tuple[int, ...], inverse: bool, dtype: torch.dtype, backward: bool, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rotation, _ = torch.linalg.qr(normal(shape[1], shape[1]))
    tensors = {"x": normal(*shape), "weight": 0.9 * rotation}
    tensors["log_abs_det"] = torch.tensor(shape[1] * math.log(0.9), dtype=torch.float64)
    if backward:
        tensors |= {"grad_y": normal(*shape), "grad_log_det": normal(shape[0])}
    return {name: x.to(device, dtype) for name, x in tensors.items()} | {"inverse": inverse}


def _build(product: Product, inputs: Inputs) -> Call:
    """Return the call that transforms, or, where gradients are given, transforms and differentiates."""
    names = ("x", "weight", "log_abs_det")
    if "grad_y" not in inputs:
        return lambda: product(*(inputs[name] for name in names), inverse=inputs["inverse"])
    with torch.inference_mode(False):
        leaves = [inputs[name].clone().requires_grad_() for name in names]
        grads = [inputs[name].clone() for name in ("grad_y", "grad_log_det")]

    def run() -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(product(*leaves, inverse=inputs["inverse"]), leaves, grads)

    return run


def _ours(x: Tensor, weight: Tensor, log_abs_det: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return fastgen.ops.invertible_linear(x, weight, log_abs_det=log_abs_det, **options)


def _on_reference(inputs: Inputs) -> Call:
    call = _build(_ours, inputs)

    def run() -> tuple[Tensor, ...]:
        with fastgen.use_backend("reference"):
            return call()

    return run


def _case(
    what: str, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, quick: bool = False
) -> Case:
    backward = "backward" in what
    match = close(*MATCH["invertible_linear" + " backward" * backward])
    images = len(shape) == 4
    others = (
        Peer("eager", partial(_build, pixel_products.eager), match),
        Peer("normflows", partial(_build, pixel_products.normflows), match, missing=needs("normflows")),
    )
    numbers, passes = math.prod(shape), 3 if backward else 1
    return Case(
        op="invertible_linear",
        name=f"{'x'.join(map(str, shape))}, {what}",
        inputs=partial(_inputs, shape, "inverse" in what, dtype, backward),
        fastgen=partial(_build, _ours),
        # normflows' own gradients leave out that of a log-determinant given from outside.
        peers=(
            Peer("reference", _on_reference, match),
            *others[: (0, 1, 2)[images + (images and not backward)]],
        ),
        work=Work(
            items=numbers,
            item="elements",
            bytes=2 * passes * dtype.itemsize * numbers,
            flops=2 * passes * numbers * shape[1],
        ),
        quick=quick,
    )


CASES = (
    _case("forward", (16, 12, 16, 16)),
    _case("forward", (16, 48, 4, 4)),
    _case("forward", (64, 24, 32, 32)),
    _case("inverse", (16, 12, 16, 16)),
    _case("inverse", (16, 48, 4, 4)),
    _case("forward and backward", (64, 24, 32, 32)),
    _case("forward", (8, 192, 16, 16)),
    _case("forward", (4096, 64)),
    _case("forward", (3, 5, 4, 3), quick=True),
    _case("inverse", (3, 5, 4, 3), quick=True),
    _case("forward", (7, 6), quick=True),
)

"""Linear layers of the sizes of conditioner networks, for one row and for many.

`bytes` counts what must move once: x, the weight and the result.
"""

from functools import partial

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs_compiler
from fastgen.bench.matching import close
from fastgen.bench.peers import torch_linear
from fastgen.tolerances import MATCH


def _inputs(
    rows: int, inputs: int, outputs: int, activation: str, dtype: torch.dtype, residual: bool, device: str
) -> Inputs:
    generator = torch.Generator().manual_seed(12)
    made = {
        "x": torch.randn(rows, inputs, generator=generator),
        "weight": (inputs**-0.5 * torch.randn(outputs, inputs, generator=generator)).to(dtype),
        "bias": torch.randn(outputs, generator=generator),
        "residual": torch.randn(rows, outputs, generator=generator) if residual else None,
    }
    return {name: None if x is None else x.to(device) for name, x in made.items()} | {
        "activation": activation
    }


def _fastgen(inputs: Inputs) -> Call:
    return lambda: fastgen.ops.linear(**inputs)


def _reference(inputs: Inputs) -> Call:
    def run() -> Tensor:
        with fastgen.use_backend("reference"):
            return fastgen.ops.linear(**inputs)

    return run


SAME = close(*MATCH["linear"])
PEERS = (
    Peer("reference", _reference, SAME),
    Peer("eager", torch_linear.build, SAME),
    Peer("torch.compile", partial(torch_linear.build, compile=True), SAME, missing=needs_compiler),
)


def _case(
    rows: int,
    inputs: int,
    outputs: int,
    activation: str = "none",
    *,
    dtype: torch.dtype = torch.float32,
    residual: bool = False,
    quick: bool = False,
) -> Case:
    remarks = [activation] * (activation != "none") + ["residual"] * residual
    remarks += ["bf16 weights"] * (dtype == torch.bfloat16)
    return Case(
        op="linear",
        name=" ".join([f"B {rows}, {inputs} to {outputs}", *remarks]),
        inputs=partial(_inputs, rows, inputs, outputs, activation, dtype, residual),
        fastgen=_fastgen,
        peers=PEERS,
        work=Work(
            items=rows * outputs,
            item="outputs",
            bytes=4 * rows * (inputs + outputs) + dtype.itemsize * inputs * outputs,
            flops=2 * rows * inputs * outputs,
        ),
        quick=quick,
    )


CASES = (
    _case(1, 256, 256),
    _case(1, 1024, 1024),
    _case(1, 1024, 1024, dtype=torch.bfloat16),
    _case(16, 256, 256),
    _case(512, 64, 64),
    _case(512, 256, 256),
    _case(512, 256, 256, "relu"),
    _case(512, 256, 256, "silu", residual=True),
    _case(512, 1024, 1024),
    _case(4096, 256, 256),
    _case(7, 20, 13, quick=True),
    _case(3, 33, 18, "gelu", residual=True, quick=True),
    _case(5, 64, 40, "silu", dtype=torch.bfloat16, quick=True),
)

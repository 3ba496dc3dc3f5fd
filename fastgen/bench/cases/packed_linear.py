"""Linear layers with packed weights: of SmolLM2's sizes, and of tests.

A layer of 576 by 1536 stays in the caches from call to call; weights for 196608 outputs do not, as those of
a whole model do not: they tell what memory allows.

Where the time of one row by 1536 outputs in q4_0 goes (Zen 4, two threads): of 16 us, 2 are Python on the
way to C++, 2 the tensors seen and made there, 0.3 the rounding of x, 1 the start and end of the parallel
region, and 11 the product, which takes 22 us on one thread. Four outputs by 128 inputs take it 37 cycles, in
the first cache as well as in the second. Counted, they are 52 vector instructions, 20 of them dot products:
26 cycles at two of 512 bits a cycle. Weights loaded once and not twice gain 1%, nibbles taken apart by one
instruction in place of two (GFNI) 3%.
"""

from functools import partial

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work
from fastgen.bench.matching import close
from fastgen.bench.peers import torch_linear
from fastgen.ops import PackedWeight
from fastgen.tolerances import MATCH

BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "q4_0": 4.5, "q4_1": 5, "q8_0": 8.5}


def _inputs(
    rows: int, inputs: int, outputs: int, format: str, activation: str, residual: bool, device: str
) -> Inputs:
    generator = torch.Generator().manual_seed(31)
    weight = PackedWeight.pack(inputs**-0.5 * torch.randn(outputs, inputs, generator=generator), format)
    return {
        "x": torch.randn(rows, inputs, generator=generator).to(device),
        "weight": weight.to(device),
        "bias": torch.randn(outputs, generator=generator).to(device),
        "activation": activation,
        "residual": torch.randn(rows, outputs, generator=generator).to(device) if residual else None,
    }


def _fastgen(inputs: Inputs) -> Call:
    return lambda: fastgen.ops.packed_linear(**inputs)


def _reference(inputs: Inputs) -> Call:
    def run() -> Tensor:
        with fastgen.use_backend("reference"):
            return fastgen.ops.packed_linear(**inputs)

    return run


def _eager(inputs: Inputs) -> Call:
    """PyTorch with the same weight, widened to float32 before the clock starts."""
    return torch_linear.build({**inputs, "weight": inputs["weight"].unpack()})


def _peers(format: str) -> tuple[Peer, ...]:
    """Inputs are rounded to 16 bits with GGUF's formats, to 8 with int8, which its reference does as well."""
    same = "packed_linear" if format in ("float32", "bfloat16") else "packed_linear rounded inputs"
    widened = "packed_linear int8" if format == "int8" else same
    return (
        Peer("reference", _reference, close(*MATCH[same])),
        Peer("eager", _eager, close(*MATCH[widened])),
    )


def _case(
    rows: int,
    inputs: int,
    outputs: int,
    format: str,
    activation: str = "none",
    *,
    residual: bool = False,
    quick: bool = False,
) -> Case:
    remarks = [format] + [activation] * (activation != "none") + ["residual"] * residual
    return Case(
        op="packed_linear",
        name=" ".join([f"B {rows}, {inputs} to {outputs}", *remarks]),
        inputs=partial(_inputs, rows, inputs, outputs, format, activation, residual),
        fastgen=_fastgen,
        peers=_peers(format),
        work=Work(
            items=rows * outputs,
            item="outputs",
            reads=BITS[format] / 8 * inputs * outputs,
            flops=2 * rows * inputs * outputs if format in ("float32", "bfloat16") else 0,
        ),
        quick=quick,
    )


CASES = (
    *(_case(1, 576, 1536, format) for format in BITS),
    *(_case(1, 1536, 576, format) for format in ("bfloat16", "q4_1")),
    *(_case(1, 576, 49152, format) for format in BITS),
    *(_case(1, 576, 196608, format) for format in ("bfloat16", "q4_1", "q8_0")),
    *(_case(32, 576, 1536, format) for format in BITS),
    *(_case(512, 576, 1536, format) for format in BITS),
    _case(7, 64, 13, "q4_1", "silu", residual=True, quick=True),
    _case(3, 33, 18, "float32", "gelu", residual=True, quick=True),
    _case(5, 64, 40, "bfloat16", quick=True),
    _case(2, 37, 20, "int8", quick=True),
    _case(4, 96, 17, "q4_0", quick=True),
    _case(1, 160, 33, "q8_0", "relu", quick=True),
)

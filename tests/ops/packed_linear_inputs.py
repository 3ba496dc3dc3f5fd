"""What the tests of packed_linear share: formats, inputs, and the result in float64."""

import torch
from torch.nn import functional as F

from fastgen import native
from fastgen.backends import usable
from fastgen.ops import PackedWeight
from fastgen.ops._registry import OPS
from fastgen.reference import packed_linear as reference

ISAS = native.usable_isas()
HERE = [name for name in OPS["packed_linear"].implementations if usable("packed_linear", name, "cpu")]
FLOATS, GGUF = ["float32", "bfloat16"], ["q4_0", "q4_1", "q8_0"]
FORMATS = [*FLOATS, "int8", *GGUF]
NUMBER = {name: i for i, name in enumerate(FORMATS)}


def make(rows, inputs, outputs, format="q4_1", seed=0):
    """x, weight, bias, residual."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=g) * torch.rand(rows, 1, generator=g)
    weight = PackedWeight.pack(torch.randn(outputs, inputs, generator=g), format)
    return x, weight, torch.randn(outputs, generator=g), torch.randn(rows, outputs, generator=g)


def seen(x, weight):
    """x as it is multiplied with: int8 rounds it, by a rule of its own that is tested below."""
    return reference.rounded(x.float()) if weight.format == "int8" else x


def exact(x, weight, bias, residual):
    return F.linear(seen(x, weight).double(), weight.unpack().double(), bias.double()) + residual.double()

"""What the tests of affine_coupling share: instruction sets, implementations, inputs."""

import torch

from fastgen import native
from fastgen.backends import usable
from fastgen.ops._registry import OPS

ISAS = native.usable_isas()
HERE = [name for name in OPS["affine_coupling"].implementations if usable("affine_coupling", name, "cpu")]
FLOATS = [torch.float32, torch.float64]
LAYOUTS = [("halves", "shift"), ("halves", "scale"), ("interleaved", "shift"), ("interleaved", "scale")]


# Rows shorter than a vector, of several and a part, images whose rows of pixels are shorter and longer.


SHAPES = [(5, 1), (3, 6), (2, 83), (2, 5, 2, 2), (2, 3, 5, 7)]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(shape, dtype=torch.float64, passed=0, seed=0):
    """x and params."""
    rows, channels, *place = shape
    params = normal(rows, 2 * (channels - abs(passed)), *place, seed=seed + 1, dtype=dtype)
    return normal(*shape, seed=seed, dtype=dtype), params


def options_of(scale_map):
    return {"scale_map": scale_map, "min_scale": 1e-3 if scale_map in ("sigmoid", "softplus") else 0.0}


def largest(a, b):
    """The largest difference, in units of 1 + |b|."""
    return ((a - b).abs() / (1 + b.abs())).max().item()

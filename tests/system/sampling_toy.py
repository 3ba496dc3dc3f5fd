"""Toy models whose samples follow from id and seed alone, and a run of one that can be killed."""

import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

import fastgen
from fastgen import random


class Toy(torch.nn.Module):
    """Normal numbers times a scale, shaped like small pictures; may dawdle, to be killed midway."""

    pause = 0.0

    def __init__(self, scale: float = 2.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.dropout = torch.nn.Dropout(0.5)
        self.batches: list[int] = []

    def sample(self, sample_ids, *, seed, shift=0.0, **options):
        if self.pause:
            time.sleep(self.pause)
        self.batches.append(len(sample_ids))
        noise = random.normal(seed, sample_ids, n=6).reshape(-1, 2, 3)
        return self.dropout(self.scale * noise + shift)


class Plain:
    """A model that is no torch module and returns more than the samples."""

    class Result(NamedTuple):
        samples: torch.Tensor
        steps: int

    def sample(self, sample_ids, *, seed):
        return self.Result(random.bernoulli(0.5, seed, sample_ids, n=4), 3)


class Spins:
    """Lattices of -1 and +1."""

    def sample(self, sample_ids, *, seed):
        bits = random.bernoulli(0.5, seed, sample_ids, n=20)
        return (2 * bits.to(torch.int8) - 1).reshape(-1, 4, 5)


def wanted(n, *, seed=5, first=0, shift=0.0):
    """What Toy's samples must be, drawn at once and without the engine."""
    ids = torch.arange(first, first + n)
    return 2.0 * random.normal(seed, ids, n=6).reshape(n, 2, 3) + shift


def sample(model=None, n=25, **arguments):
    arguments = {"seed": 5, "batch_size": 4, "progress": False} | arguments
    return fastgen.sample(Toy() if model is None else model, n, **arguments)


def contents(directory):
    """Every file below `directory` with its bytes."""
    paths = [path for path in Path(directory).rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


MANIFEST = {
    "format_version": 1,
    "fastgen": fastgen.__version__,
    "model": "Toy",
    "seed": 5,
    "options": {"shift": 0.5},
    "first": 3,
    "shard_size": 10,
    "format": "npy",
    "n": 25,
    "dtype": "float32",
    "shape": [2, 3],
    "fingerprint": "",
    "shards": [],
}


if __name__ == "__main__":
    Toy.pause = 0.05
    fastgen.sample(Toy(), int(sys.argv[2]), out=sys.argv[1], batch_size=4, shard_size=10, seed=5)

"""A toy model whose samples follow from id and seed alone, and a run of it that can be killed."""

import sys
import time

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


if __name__ == "__main__":
    Toy.pause = 0.05
    fastgen.sample(Toy(), int(sys.argv[2]), out=sys.argv[1], batch_size=4, shard_size=10, seed=5)

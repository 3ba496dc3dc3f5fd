"""A toy model with every kind of state a training has to keep, and a run of it that can be killed."""

import sys
import time

import torch

import fastgen.models
from fastgen.training import train


class Line(fastgen.models.Model):
    """Fits y = a x + b; its loss draws noise, uses dropout, and counts its calls in a buffer."""

    def __init__(self, size: int = 3, pause: float = 0.0):
        super().__init__(size=size)
        generator = torch.Generator().manual_seed(7)
        self.weight = torch.nn.Parameter(torch.randn(size, generator=generator))
        self.bias = torch.nn.Parameter(torch.zeros(()))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(()))
        self.pause = pause

    def loss(self, batch):
        if self.pause:
            time.sleep(self.pause)
        x, y = batch
        self.calls += 1
        noise = 0.1 * torch.randn(len(x)) + 0.01 * self.last
        error = torch.nn.functional.dropout(x, 0.1, self.training) @ self.weight + self.bias + noise - y
        self.last.copy_(error.detach().mean())
        return (error**2).mean()

    def sample(self, sample_ids, *, seed):
        return sample_ids


def data(n=100, size=3):
    """Points on a plane."""
    x = torch.randn(n, size, generator=torch.Generator().manual_seed(3))
    return x, x @ torch.arange(1.0, size + 1) + 0.5


SETTINGS = {"batch_size": 16, "lr": 0.05, "ema": 0.9, "clip_norm": 2.0, "patience": 50, "weight_decay": 0.01}

if __name__ == "__main__":
    out, epochs, optimizer = sys.argv[1:]
    train(Line(pause=0.01), data(), out=out, epochs=int(epochs), optimizer=optimizer, **SETTINGS)

"""The specification of the op `ising` in plain PyTorch.

A sweep updates the sites of colour 0, then those of colour 1; site (i, j) has colour (i + j) % 2. Half sweep
t = 2 * sweep + colour takes its random bits at step t of the stream ISING:

* the sites of one colour in row i, at columns 2 * k + (i + colour) % 2, fall into groups of 32: site k is bit
  k % 32 of group i * G + k // 32, with G = ceil(ceil(W / 2) / 32) groups a row;
* element 32 * group + q of the stream is bit plane q of the group: bit b of that word is bit 31 - q of the
  random number of site b. So a number is known from its highest bit on, and a comparison may stop early.

The new spin is up if the random number (32 bits) is below a threshold that depends on the old spin and on the
sum of the neighbours: P(up) * 2**32, rounded up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.random import Stream
from fastgen.reference.random import words


def _exp_nonpositive(x: Tensor) -> Tensor:
    """exp of float64 x <= 0 in IEEE additions and multiplications alone: the same bits on every machine."""
    x = torch.clamp(x, min=-700.0)
    n = torch.round(x * 1.4426950408889634)
    r = (
        x - n * 0.6931471803691238
    ) - n * 1.9082149292705877e-10  # log(2) in two parts, the first exact in few bits
    term = torch.ones_like(r)
    for k in range(16, 0, -1):  # Taylor: |r| <= 0.35 leaves less than 2**-56
        term = term * r * (1.0 / k) + 1.0
    return term * ((n.long() + 1023) << 52).view(torch.float64)


def thresholds(beta: Tensor, field: Tensor, coupling: float, metropolis: bool) -> Tensor:
    """(B, 2, 9) int64: the new spin is up iff its number is below [chain, old spin up, neighbour sum + 4]."""
    neighbours = torch.arange(-4, 5, dtype=torch.float64, device=beta.device)
    local = coupling * neighbours + field[:, None]
    gain = 2.0 * beta[:, None] * local  # log of P(up) / P(down)
    e = _exp_nonpositive(-gain.abs())
    if metropolis:
        up_from_down = torch.where(gain >= 0, torch.ones_like(e), e)
        up_from_up = 1.0 - torch.where(gain <= 0, torch.ones_like(e), e)
        p = torch.stack([up_from_down, up_from_up], dim=1)
    else:
        up = torch.where(gain >= 0, torch.ones_like(e), e) / (1.0 + e)
        p = torch.stack([up, up], dim=1)
    return torch.ceil(p * 2.0**32).long()


def _neighbour_sum(spins: Tensor, periodic: bool) -> Tensor:
    if periodic:
        return spins.roll(1, 1) + spins.roll(-1, 1) + spins.roll(1, 2) + spins.roll(-1, 2)
    padded = torch.nn.functional.pad(spins, (1, 1, 1, 1))
    return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]


def _numbers(height: int, width: int, colour: int, seed: int, sample_ids: Tensor, step: int) -> Tensor:
    """(B, H, W) int64: the random numbers of the sites of a colour; those of the others mean nothing."""
    device = sample_ids.device
    groups = ((width + 1) // 2 + 31) // 32
    planes = words(seed, sample_ids, step, 32 * height * groups, Stream.ISING).view(-1, height, groups, 32)
    bit = torch.arange(32, device=device)
    number = torch.zeros(len(sample_ids), height, groups, 32, dtype=torch.int64, device=device)
    for q in range(32):
        number |= ((planes[..., q, None] >> bit) & 1) << (31 - q)
    row, column = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    k = (column - (row + colour) % 2).clamp(min=0) // 2
    return number.view(-1, height, 32 * groups).gather(2, k.expand(len(sample_ids), -1, -1))


def ising(
    spins: Tensor,
    beta: Tensor,
    field: Tensor,
    coupling: float,
    periodic: bool,
    metropolis: bool,
    sweeps: int,
    seed: int,
    sample_ids: Tensor,
    first_step: int,
    observe: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fastgen.ops.ising`; returns spins, and after each sweep their sum and that of s s' over bonds."""
    table = thresholds(beta, field, coupling, metropolis)
    spins = spins.long()
    batch, height, width = spins.shape
    row, column = torch.arange(height, device=spins.device)[:, None], torch.arange(width, device=spins.device)
    chain = torch.arange(batch, device=spins.device)[:, None, None]
    magnetisation, bonds = [], []
    for sweep in range(first_step, first_step + sweeps):
        for colour in (0, 1):
            number = _numbers(height, width, colour, seed, sample_ids, 2 * sweep + colour)
            threshold = table[chain, (spins > 0).long(), _neighbour_sum(spins, periodic) + 4]
            new = torch.where(number < threshold, 1, -1)
            spins = torch.where((row + column) % 2 == colour, new, spins)
        if observe:
            magnetisation.append(spins.sum((1, 2)))
            bonds.append((spins * _neighbour_sum(spins, periodic)).sum((1, 2)) // 2)
    none = spins.new_empty(batch, 0)
    return (
        spins.to(torch.int8),
        torch.stack(magnetisation, 1) if magnetisation else none,
        torch.stack(bonds, 1) if bonds else none,
    )

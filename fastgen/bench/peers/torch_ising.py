"""The Ising model's checkerboard heat bath in PyTorch, in the two ways in which it is commonly written.

`roll and where` updates the whole lattice and keeps one colour; `sublattices` holds the two colours apart and
draws half the random numbers. Each takes the dtype that measured faster: int8 for the first and float32 for
the second, in eager mode on a CPU; float32 for both once compiled.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.bench.case import Call, Inputs
from fastgen.bench.peers.compiling import compiled


def roll_and_where(spins: Tensor, colours: list[Tensor], beta: float) -> Tensor:
    """One sweep of (B, H, W) spins of +1 and -1; `colours` are the two masks (H, W)."""
    for colour in colours:
        field = spins.roll(1, -1) + spins.roll(-1, -1) + spins.roll(1, -2) + spins.roll(-1, -2)
        up = torch.rand(field.shape, device=field.device) < torch.sigmoid(2 * beta * field)
        spins = torch.where(colour, 2 * up.to(spins.dtype) - 1, spins)
    return spins


def sublattices(even: Tensor, odd: Tensor, odd_rows: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """One sweep of the two colours, (B, H, W / 2) each; `odd_rows` (H, 1) is True in rows 1, 3, ..."""

    def updated(others: Tensor, shifted: Tensor) -> Tensor:
        beside = torch.where(shifted, others.roll(-1, -1), others.roll(1, -1))
        field = others + beside + others.roll(1, -2) + others.roll(-1, -2)
        return torch.where(torch.rand_like(field) < torch.sigmoid(2 * beta * field), 1.0, -1.0)

    even = updated(odd, odd_rows)
    return even, updated(even, ~odd_rows)


def colours(height: int, width: int, device: str) -> list[Tensor]:
    """Return the masks of the sites with an even and with an odd sum of row and column."""
    parity = (torch.arange(height, device=device)[:, None] + torch.arange(width, device=device)) % 2
    return [parity == 0, parity == 1]


def split(spins: Tensor) -> tuple[Tensor, Tensor]:
    """Return the even and the odd sites of (B, H, W) spins, (B, H, W / 2) each, in float32."""
    even, odd = spins[:, :, 0::2].float(), spins[:, :, 1::2].float()
    even[:, 1::2], odd[:, 1::2] = spins[:, 1::2, 1::2].float(), spins[:, 1::2, 0::2].float()
    return even, odd


def join(pair: tuple[Tensor, Tensor]) -> Tensor:
    """Undo `split`: return (B, H, W) spins in int8."""
    even, odd = (half.to(torch.int8) for half in pair)
    spins = torch.stack([even, odd], -1)
    spins[:, 1::2] = spins[:, 1::2].flip(-1)
    return spins.flatten(-2)


def build_roll_and_where(inputs: Inputs, *, compile: bool = False) -> Call:
    """Return the run of `inputs["sweeps"]` sweeps from `inputs["spins"]`."""
    sweep: Callable[..., Tensor] = compiled(roll_and_where) if compile else roll_and_where
    start = inputs["spins"].float() if compile else inputs["spins"]
    masks = colours(start.shape[1], start.shape[2], str(start.device))

    def run() -> Tensor:
        spins = start
        for _ in range(inputs["sweeps"]):
            spins = sweep(spins, masks, inputs["beta"])
        return spins

    return run


def build_sublattices(inputs: Inputs, *, compile: bool = False) -> Call:
    """Return the run of `inputs["sweeps"]` sweeps from `inputs["spins"]`; it returns the two colours."""
    sweep: Callable[..., tuple[Tensor, Tensor]] = compiled(sublattices) if compile else sublattices
    start = split(inputs["spins"])
    odd_rows = torch.arange(start[0].shape[1], device=start[0].device)[:, None] % 2 == 1

    def run() -> tuple[Tensor, Tensor]:
        even, odd = start
        for _ in range(inputs["sweeps"]):
            even, odd = sweep(even, odd, odd_rows, inputs["beta"])
        return even, odd

    return run

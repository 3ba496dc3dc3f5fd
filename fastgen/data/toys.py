"""Densities in two dimensions with shapes that a picture shows at a glance."""

from collections.abc import Callable

import numpy as np
import torch

Drawn = Callable[[np.random.Generator, int], np.ndarray]


def _moons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two half circles, one upside down, that reach into each other."""
    angle, upper = rng.uniform(0, np.pi, n), rng.random(n) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    return np.stack([x, y], 1) * 1.6 + rng.normal(0, 0.1, (n, 2))


def _rings(rng: np.random.Generator, n: int) -> np.ndarray:
    """Three circles around the origin."""
    angle, radius = rng.uniform(0, 2 * np.pi, n), rng.choice([0.8, 1.6, 2.4], n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.08, (n, 2))


def _gaussians(rng: np.random.Generator, n: int) -> np.ndarray:
    """Eight round clouds on a circle."""
    angle = rng.integers(0, 8, n) * np.pi / 4
    return 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.2, (n, 2))


def _checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
    """The black squares of a board of 4 x 4."""
    column, row = rng.integers(0, 4, n), rng.integers(0, 2, n)
    place = np.stack([column, 2 * row + column % 2], 1) + rng.random((n, 2))
    return 1.25 * (place - 2)


def _spirals(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two arms that wind around the origin."""
    turn = 3 * np.pi * np.sqrt(rng.random(n))
    arm = rng.choice([-1.0, 1.0], n) * turn / 4
    return np.stack([arm * np.cos(turn), arm * np.sin(turn)], 1) + rng.normal(0, 0.07, (n, 2))


def _pinwheel(rng: np.random.Generator, n: int) -> np.ndarray:
    """Five blades, bent as by a wind."""
    along, across = 0.35 * rng.normal(size=n) + 1.4, 0.12 * rng.normal(size=n)
    angle = rng.integers(0, 5, n) * 2 * np.pi / 5 + 0.6 * along
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([along * cos - across * sin, along * sin + across * cos], 1)


TOYS: dict[str, Drawn] = {
    "moons": _moons,
    "rings": _rings,
    "gaussians": _gaussians,
    "checkerboard": _checkerboard,
    "spirals": _spirals,
    "pinwheel": _pinwheel,
}


def toy(name: str, n: int, *, seed: int = 0) -> torch.Tensor:
    """Draw n independent points (n, 2), float32, within about 3 of the origin.

    Args:
        name: "moons", "rings", "gaussians", "checkerboard", "spirals" or "pinwheel".
        n: 1 or more.
        seed: of numpy's generator.
    """
    if name not in TOYS:
        raise ValueError(f"name is {name!r}, wanted one of {', '.join(TOYS)}")
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n is {n!r}, wanted an int of at least 1")
    return torch.from_numpy(TOYS[name](np.random.default_rng(seed), n)).float()

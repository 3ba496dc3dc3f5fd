"""Exact results for the two-dimensional Ising model without a field, against which samplers are held.

Energies are per site, magnetisations per site; K = beta * |J|.
"""

import math

import torch
from torch import Tensor


def critical_beta(coupling: float = 1.0) -> float:
    """Inverse critical temperature log(1 + sqrt(2)) / (2 |J|), infinite lattice; ValueError for J = 0."""
    if coupling == 0:
        raise ValueError(
            "coupling is 0, wanted another number: without a coupling there is no critical point"
        )
    return math.log(1 + math.sqrt(2)) / (2 * abs(coupling))


def _arithmetic_geometric_mean(a: float, b: float) -> float:
    while abs(a - b) > 1e-15 * a:
        a, b = (a + b) / 2, math.sqrt(a * b)
    return a


def onsager_energy(beta: float, coupling: float = 1.0) -> float:
    """Energy per site of the infinite square lattice (Onsager 1944, doi:10.1103/PhysRev.65.117).

    -|J| coth(2K) (1 + (2/pi) k' K1(k)), k' = 2 tanh(2K)^2 - 1, with the complete elliptic integral of modulus
    k = sqrt(1 - k'^2) as K1(k) = pi / (2 agm(1, |k'|)).
    """
    if beta * coupling == 0:
        return 0.0
    tanh = math.tanh(2 * beta * abs(coupling))
    complement = 2 * tanh**2 - 1
    # At the critical point k' = 0, and k' K1 goes to 0 with it.
    elliptic = (
        complement / _arithmetic_geometric_mean(1.0, abs(complement)) if abs(complement) > 1e-15 else 0.0
    )
    return -abs(coupling) / tanh * (1 + elliptic)


def onsager_magnetisation(beta: float, coupling: float = 1.0) -> float:
    """Spontaneous magnetisation per site, (1 - sinh(2K)^-4)^(1/8), 0 above the critical point (Yang 1952)."""
    if coupling == 0 or beta <= critical_beta(coupling):
        return 0.0
    return (1 - math.sinh(2 * beta * abs(coupling)) ** -4) ** 0.125


def torus_log_partition(height: int, width: int, beta: Tensor, coupling: float = 1.0) -> Tensor:
    """log Z of a finite periodic lattice with even sides (Kaufman 1949, doi:10.1103/PhysRev.76.1232).

    Args:
        height, width: at least 2; a side of 2 counts each bond around it twice, as the op `ising` does.
        beta: float64 scalar tensor > 0; its gradients give minus the energy, and the variance of the energy.

    Returns:
        float64 scalar.
    """
    k = beta.double() * abs(coupling)
    angle = torch.arange(2 * width, dtype=torch.float64) * (math.pi / width)
    gamma = torch.acosh((torch.cosh(2 * k) ** 2 / torch.sinh(2 * k) - torch.cos(angle[1:])).clamp(min=1.0))
    x = torch.cat([(2 * k + torch.log(torch.tanh(k)))[None], gamma]) * (height / 2)
    odd, even, first = x[1::2], x[2::2], x[0]
    # The products of 2 cosh x and 2 sinh x as exp(sum |x|) times what is near 1; only x[0] may be negative.
    cosh, sinh = torch.log1p(torch.exp(-2 * x.abs())), torch.log(-torch.expm1(-2 * x[1:].abs()))
    odd_products = cosh[1::2].sum().exp() + sinh[0::2].sum().exp()
    sign = torch.exp(first - first.abs()) - torch.exp(-first - first.abs())
    even_products = cosh[0::2].sum().exp() + sign * sinh[1::2].sum().exp()
    scale = torch.stack([odd.sum(), even.sum() + first.abs()])
    highest = scale.detach().max()
    products = (torch.stack([odd_products, even_products]) * torch.exp(scale - highest)).sum()
    return highest + torch.log(products) - math.log(2) + height * width / 2 * torch.log(2 * torch.sinh(2 * k))


def torus_energy(height: int, width: int, beta: float, coupling: float = 1.0) -> float:
    """Energy per site of a finite periodic lattice with even sides."""
    if beta * coupling == 0:
        return 0.0
    b = torch.tensor(float(beta), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torus_log_partition(height, width, b, coupling), b)
    return -slope.item() / (height * width)

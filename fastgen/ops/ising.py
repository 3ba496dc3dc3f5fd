"""The op `ising`: checkerboard sweeps of a two-dimensional Ising model.

Its GPU implementation is CUDA C++: the loop over sweeps keeps the packed lattice on the chip and synchronises
the threads of a block between half sweeps, which Triton cannot say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgen.ops._registry import Op, register
from fastgen.random import as_int, as_step, check_sample_ids, resolve_sample_ids, resolve_seed
from fastgen.reference import ising as reference


class IsingState(NamedTuple):
    """What `ising` returns.

    Attributes:
        spins: (B, H, W) int8 of -1 and +1 after the last sweep.
        magnetisation: (B, sweeps) int64, the sum of the spins after each sweep; None unless observed.
        energy: (B, sweeps) float64, the energy after each sweep; None unless observed.
    """

    spins: Tensor
    magnetisation: Tensor | None
    energy: Tensor | None


@torch.no_grad()
def ising(
    spins: Tensor,
    beta: float | Tensor,
    *,
    sweeps: int = 1,
    coupling: float = 1.0,
    field: float | Tensor = 0.0,
    periodic: bool = True,
    method: str = "heat_bath",
    observe: bool = False,
    seed: int | None = None,
    sample_ids: Tensor | None = None,
    first_step: int = 0,
) -> IsingState:
    """Sweeps of a two-dimensional Ising model, E = -J * sum over bonds of s s' - field * sum of s.

    One sweep updates every spin once, the sites of one colour of the checkerboard first, then the others,
    with the heat bath (Glauber) or the Metropolis rule at P ~ exp(-beta E). Acceptance probabilities are
    resolved to 2**-32. Chain i depends on the seed, its sample id and the sweeps' numbers alone: not on the
    batch, threads or device, and sweeps n .. m - 1 after sweeps 0 .. n - 1 (`first_step=n`) give the spins of
    sweeps 0 .. m - 1. Nothing is differentiable: results never require a gradient.

    Args:
        spins: (B, H, W) int8 of -1 and +1: B independent chains.
        beta: inverse temperature, finite: a number, or a floating tensor (B,), one for each chain.
        sweeps: how many sweeps, 0 or more.
        coupling: J, finite: positive for a ferromagnet, negative for an antiferromagnet.
        field: finite: a number, or a floating tensor (B,).
        periodic: neighbours wrap around; H and W must then be even, or the colours would not separate them.
            On a side of 2 a site has its one neighbour twice. False: free edges, any H and W.
        method: "heat_bath" or "metropolis". Metropolis takes every flip that costs nothing, so a state
            without any local field only turns over and over: at beta = 0, or by chance in a small lattice.
        observe: also return magnetisation and energy after each sweep.
        seed: 64 bits; None takes a seed from torch's default generator.
        sample_ids: (B,) int64, 0 <= id < 2**56; None is 0 .. B - 1.
        first_step: number of the first sweep, to continue a chain; up to 2**31 - sweeps.

    Returns:
        IsingState(spins, magnetisation, energy).

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    _check(spins, coupling, periodic, method, observe)
    sweeps = as_int("sweeps", sweeps, 0)
    first_step = as_step("first_step", first_step, sweeps, draws=2)  # a half sweep is a step of the counter
    batch = spins.shape[0]
    state, magnetisation, bonds = torch.ops.fastgen.ising(
        spins.contiguous(),
        _per_chain("beta", beta, batch, spins.device),
        per_chain_field := _per_chain("field", field, batch, spins.device),
        float(coupling),
        periodic,
        method == "metropolis",
        sweeps,
        resolve_seed(seed),
        resolve_sample_ids(sample_ids, batch, spins.device),
        first_step,
        observe,
    )
    if not observe:
        return IsingState(state, None, None)
    return IsingState(state, magnetisation, -coupling * bonds - per_chain_field[:, None] * magnetisation)


def _check(spins: Tensor, coupling: float, periodic: bool, method: str, observe: bool) -> None:
    if not isinstance(spins, Tensor) or spins.dtype != torch.int8:
        came = spins.dtype if isinstance(spins, Tensor) else type(spins).__name__
        raise TypeError(f"spins is {came}, wanted an int8 tensor of -1 and +1")
    if spins.dim() != 3 or 0 in spins.shape[1:]:
        raise ValueError(
            f"spins has shape {tuple(spins.shape)}, wanted (chains, height, width), height and width >= 1"
        )
    height, width = spins.shape[1:]
    if periodic and (height % 2 or width % 2):
        raise ValueError(
            f"spins is a periodic lattice of {height} x {width}, wanted even sides: around an odd side two"
            " neighbours have one colour and would be updated at once (or use periodic=False)"
        )
    if height * ((width + 63) // 64) > 2**29:
        raise ValueError(
            f"spins is a lattice of {height} x {width}, wanted at most 2**29 groups of 64 columns"
        )
    for name, flag in (("periodic", periodic), ("observe", observe)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is {flag!r}, wanted True or False")
    if not isinstance(coupling, (int, float)):
        raise TypeError(f"coupling is {coupling!r}, wanted a number")
    if not abs(coupling) < float("inf"):
        raise ValueError(f"coupling is {coupling}, wanted a finite number")
    if method not in ("heat_bath", "metropolis"):
        raise ValueError(f"method is {method!r}, wanted 'heat_bath' or 'metropolis'")


def _per_chain(name: str, value: float | Tensor, batch: int, device: torch.device) -> Tensor:
    """A number or (B,) tensor as float64 (B,); that it is finite is checked when the op runs."""
    if not isinstance(value, Tensor):
        if not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {value!r}, wanted a number or a floating tensor")
        return torch.full((batch,), float(value), dtype=torch.float64, device=device)
    if not value.is_floating_point() or value.device != device:
        raise TypeError(f"{name} is {value.dtype} on {value.device}, wanted a floating tensor on {device}")
    if value.shape not in ((), (batch,)):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted () or ({batch},)")
    return value.double().expand(batch).contiguous()


def _check_values(spins: Tensor, beta: Tensor, field: Tensor, *rest: Any) -> None:
    for name, value in (("beta", beta), ("field", field)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds {value[~torch.isfinite(value)][0].item()}, wanted finite numbers")
    check_sample_ids(rest[5])


def _fake(
    spins: Tensor,
    beta: Tensor,
    field: Tensor,
    coupling: float,
    periodic: bool,
    metropolis: bool,
    sweeps: int,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    observed = (spins.shape[0], sweeps if rest[-1] else 0)
    trace = spins.new_empty(observed, dtype=torch.int64)
    return torch.empty_like(spins), trace, torch.empty_like(trace)


def _refuse_other_than_spins(spins: Tensor) -> None:
    """Some chains at a time: a mask of all spins at once would be as large as the spins."""
    for some in spins.split(1 + 2**22 // spins.shape[1:].numel()):
        if not bool((some.abs() == 1).all()):
            raise ValueError(f"spins holds {int(some[some.abs() != 1][0])}, wanted -1 and +1")


def _reference(spins: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _refuse_other_than_spins(spins)
    return reference.ising(spins, *arguments)


def _in_place(namespace: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The compiled op of `namespace` advances a copy of the spins; the native one checks them as well, and
    works out the thresholds, which as PyTorch's operations cost more than some sweeps.
    """

    def run(
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
        state = spins.clone()
        magnetisation = spins.new_zeros((len(spins), sweeps if observe else 0), dtype=torch.int64)
        bonds = torch.zeros_like(magnetisation)
        rule: tuple[Any, ...] = (beta, field, coupling)
        if namespace == "fastgen_cuda":
            _refuse_other_than_spins(spins)
            # A few numbers a chain, in many small operations: on the GPU each would cost a launch.
            thresholds = reference.thresholds(beta.cpu(), field.cpu(), coupling, metropolis)
            rule = (thresholds.to(spins.device),)
        valid = getattr(torch.ops, namespace).ising(
            state, magnetisation, bonds, *rule, periodic, metropolis, sweeps, seed, sample_ids, first_step
        )
        if valid is False:
            _refuse_other_than_spins(spins)
        return state, magnetisation, bonds

    return run


register(
    Op(
        name="ising",
        schema="(Tensor spins, Tensor beta, Tensor field, float coupling, bool periodic, bool metropolis,"
        " SymInt sweeps, SymInt seed, Tensor sample_ids, SymInt first_step, bool observe)"
        " -> (Tensor, Tensor, Tensor)",
        fake=_fake,
        implementations={
            "reference": _reference,
            "native": _in_place("fastgen_native"),
            "cuda": _in_place("fastgen_cuda"),
        },
        check_values=_check_values,
    )
)

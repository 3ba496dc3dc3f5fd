"""The two-dimensional Ising model: samples at one temperature, over many, and with replicas that swap."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgen import random
from fastgen.models.base import Model
from fastgen.models.ising_exact import critical_beta
from fastgen.models.ising_observables import TemperatureSweep, observables
from fastgen.ops.ising import IsingState, ising
from fastgen.random import Stream, as_int, resolve_seed


class Tempering(NamedTuple):
    """What `Ising.parallel_tempering` returns.

    Attributes:
        spins: (B, T, height, width) int8: replica t of each chain is at betas[t] after the last round.
        magnetisation: (B, T, rounds) int64, sums of the spins after each round's sweeps, before its swaps.
        energy: (B, T, rounds) float64, likewise.
        swap_rate: (T - 1,) float64, which share of the proposed swaps of t and t + 1 was accepted; NaN where
            none was proposed.
    """

    spins: Tensor
    magnetisation: Tensor
    energy: Tensor
    swap_rate: Tensor


class Ising(Model):
    """E = -J * sum over bonds of s s' - field * sum of s on a square lattice, P ~ exp(-beta E).

    Args:
        height, width: sides of the lattice, at least 1; even if periodic.
        coupling: J; negative for an antiferromagnet.
        field: acts on every spin.
        periodic: neighbours wrap around; else the edges are free.
        method: "heat_bath" or "metropolis". Metropolis always takes a flip that costs nothing, so a state in
            which no site has a local field only ever turns over: at beta = 0, or by chance in small lattices
            from a random start (36 of the 65,536 states of 4 x 4). Start those "up", or use the heat bath.

    Raises:
        ValueError: an argument is outside these; the message says what came and what is wanted.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        coupling: float = 1.0,
        field: float = 0.0,
        periodic: bool = True,
        method: str = "heat_bath",
    ) -> None:
        super().__init__(
            height=height, width=width, coupling=coupling, field=field, periodic=periodic, method=method
        )
        height, width = as_int("height", height, 1), as_int("width", width, 1)
        for name, value in (("coupling", coupling), ("field", field)):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}, wanted a finite number")
        self.height, self.width = height, width
        # A batch of no chains, for the op's own checks of the rest.
        self._advance(torch.empty(0, height, width, dtype=torch.int8), 0.0, sweeps=0, seed=0)

    def sample(  # type: ignore[override]
        self,
        sample_ids: Tensor,
        *,
        seed: int | None,
        beta: float | Tensor | None = None,
        sweeps: int = 1000,
        start: str | Tensor = "random",
        first_step: int = 0,
    ) -> Tensor:
        """The chains of these ids after some sweeps.

        Args:
            sample_ids: (B,) int64.
            seed: 64 bits; None takes a seed from torch's default generator.
            beta: inverse temperature: a number, or a floating tensor (B,); None is the critical point.
            sweeps: 0 or more. Near the critical point a chain needs about L^2.17 of them to forget its start.
            start: "random", "up", or spins (B, height, width) int8, to continue after `first_step` sweeps.

        Returns:
            (B, height, width) int8 of -1 and +1.
        """
        seed = resolve_seed(seed)
        beta = critical_beta(self.config["coupling"]) if beta is None else beta
        spins = self._start(start, sample_ids, seed)
        return self._advance(
            spins, beta, sweeps=sweeps, seed=seed, sample_ids=sample_ids, first_step=first_step
        ).spins

    def temperature_sweep(
        self,
        betas: Any,
        *,
        seed: int | None,
        chains: int = 16,
        sweeps: int = 1000,
        burn_in: int = 200,
        start: str = "up",
    ) -> TemperatureSweep:
        """Observables at each temperature, from independent chains observed after each sweep.

        The errors hold as long as `burn_in` is enough for the chains to forget their start. Chain c at
        betas[t] has the sample id c * T + t.

        Args:
            betas: T finite numbers.
            seed: 64 bits; None takes a seed from torch's default generator.
            chains: at each temperature, 2 or more.
            sweeps: observed, 1 or more; burn_in: before them, 0 or more.
            start: "up" or "random". From "random", a large cold lattice stays in stripes for long.
        """
        beta = _check_betas(betas, 1)
        chains, sweeps = as_int("chains", chains, 2), as_int("sweeps", sweeps, 1)
        burn_in = as_int("burn_in", burn_in, 0)
        seed, ids = resolve_seed(seed), torch.arange(chains * len(beta))
        state, repeated = self._start(start, ids, seed), beta.repeat(chains)
        state = self._advance(state, repeated, sweeps=burn_in, seed=seed, sample_ids=ids).spins
        _, magnetisation, energy = self._advance(
            state, repeated, sweeps=sweeps, seed=seed, sample_ids=ids, first_step=burn_in, observe=True
        )
        assert magnetisation is not None and energy is not None  # because observe=True
        shape, sites = (chains, len(beta), sweeps), self.height * self.width
        return observables(beta, magnetisation.view(shape) / sites, energy.view(shape) / sites, sites)

    def parallel_tempering(
        self,
        betas: Any,
        *,
        seed: int | None,
        sample_ids: Tensor | None = None,
        rounds: int = 100,
        sweeps: int = 1,
        start: str | Tensor = "random",
        first_round: int = 0,
    ) -> Tempering:
        """Replica exchange (Hukushima & Nemoto 1996, doi:10.1143/JPSJ.65.1604): rounds of sweeps, then swaps.

        After the sweeps of round r, the replicas t and t + 1 with t % 2 = r % 2 swap their spins with
        probability min(1, exp((betas[t+1] - betas[t]) * (E[t+1] - E[t]))), drawn from the stream ISING_SWAP
        at step r. The replicas of chain i have the sample ids i * T + t, so chain i depends on no other.

        Args:
            betas: T >= 2 finite numbers, in the order of the temperatures.
            seed: 64 bits; None takes a seed from torch's default generator.
            sample_ids: (B,) int64, the chains, each below 2**56 / T; None is the one chain 0.
            rounds: 1 or more.
            sweeps: in each round, 1 or more.
            start: "random", "up", or the spins (B, T, height, width) of an earlier call, to continue after
                `first_round` rounds.
        """
        beta = _check_betas(betas, 2)
        rounds, sweeps = as_int("rounds", rounds, 1), as_int("sweeps", sweeps, 1)
        first_round = as_int("first_round", first_round, 0)
        seed, chains = resolve_seed(seed), torch.arange(1) if sample_ids is None else sample_ids
        replicas = torch.arange(len(beta), device=chains.device)
        ids = (chains[:, None] * len(beta) + replicas).flatten()
        spins = self._start(start.flatten(0, 1) if isinstance(start, Tensor) else start, ids, seed)
        magnetisation, energy, swaps = [], [], []
        for step in range(first_round, first_round + rounds):
            state, m, e = self._advance(
                spins,
                beta.to(chains.device).repeat(len(chains)),
                sweeps=sweeps,
                seed=seed,
                sample_ids=ids,
                first_step=step * sweeps,
                observe=True,
            )
            assert m is not None and e is not None  # because observe=True
            magnetisation.append(m[:, -1].view(len(chains), len(beta)))
            energy.append(e[:, -1].view(len(chains), len(beta)))
            swaps.append(_swaps(beta.to(chains.device), energy[-1], seed, chains, step))
            spins = state[_rows_after(swaps[-1])]
        taken = torch.stack(swaps).double().flatten(0, 1).nanmean(0)
        spins = spins.view(len(chains), len(beta), self.height, self.width)
        return Tempering(spins, torch.stack(magnetisation, -1), torch.stack(energy, -1), taken)

    def _advance(self, spins: Tensor, beta: float | Tensor, **arguments: Any) -> IsingState:
        return ising(
            spins, beta, **{k: v for k, v in self.config.items() if k not in ("height", "width")}, **arguments
        )

    def _start(self, start: str | Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        shape = (len(sample_ids), self.height, self.width)
        if isinstance(start, Tensor):
            if start.shape != shape:
                raise ValueError(f"start has shape {tuple(start.shape)}, wanted {shape}")
            return start
        if start == "up":
            return torch.ones(shape, dtype=torch.int8, device=sample_ids.device)
        if start != "random":
            raise ValueError(f"start is {start!r}, wanted 'random', 'up' or a tensor of spins")
        up = random.bernoulli(0.5, seed, sample_ids, n=self.height * self.width, stream=Stream.ISING_START)
        return (2 * up.to(torch.int8) - 1).view(shape)


def _swaps(beta: Tensor, energy: Tensor, seed: int, chains: Tensor, step: int) -> Tensor:
    """(B, T - 1) float: 1 where t and t + 1 swap, 0 where they do not, NaN where it was not their turn."""
    gain = beta.diff() * energy.diff()
    u = random.uniform(seed, chains, step=step, n=len(beta) - 1, stream=Stream.ISING_SWAP)
    swap = (u.double().log() < gain).float()
    swap[:, 1 - step % 2 :: 2] = math.nan
    return swap


def _rows_after(swap: Tensor) -> Tensor:
    """(B * T,) int64: which row of the flat state comes to each place."""
    chains, pairs = swap.shape
    rows = torch.arange(chains * (pairs + 1), device=swap.device).view(chains, pairs + 1)
    taken = swap.nan_to_num().long()
    rows[:, :-1] += taken
    rows[:, 1:] -= taken
    return rows.flatten()


def _check_betas(betas: Any, least: int) -> Tensor:
    beta = torch.as_tensor(betas, dtype=torch.float64).cpu()
    if beta.dim() != 1 or len(beta) < least or not bool(torch.isfinite(beta).all()):
        raise ValueError(f"betas is {betas}, wanted at least {least} finite inverse temperatures")
    return beta

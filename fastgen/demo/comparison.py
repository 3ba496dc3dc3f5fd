"""fastgen and what people use today on the same work: the answers are compared first, the times only then."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.bench import timing
from fastgen.bench.case import Call, Case, Inputs, Match, Peer, Work
from fastgen.bench.cases import table
from fastgen.bench.matching import exact, rows_equal, statistical
from fastgen.bench.peers import torch_ising, torch_rbm
from fastgen.bench.report import milliseconds
from fastgen.bench.runner import check
from fastgen.demo.settings import Settings
from fastgen.models import RBM, critical_beta

STEPS = 10
# Of the table of benchmarks: a case and the library that it is held against. True: of the quick demo.
FLOWS = {
    False: (
        ("made_inverse", "affine D 64, 256 x 2 blocks, 512 samples", "nflows"),
        ("made_inverse", "spline D 32, 64 x 2, 512 samples", "zuko"),
        ("rq_spline", "4096x32, 8 bins, inverse", "nflows"),
    ),
    True: (
        ("made_inverse", "spline D 4, 9 and 7, 6 samples", "zuko"),
        ("rq_spline", "33x5, 4 bins, inverse", "nflows"),
    ),
}
PREFIXES = (("G ", 1e9), ("M ", 1e6), ("k ", 1e3))


@dataclass(frozen=True)
class Comparison:
    """One line of the table: `same` is about the peer's answers, `exact` about the reference's."""

    case: Case
    peer: str
    same: Match
    exact: Match
    timed: timing.Comparison

    def speed(self, call_ms: float) -> str:
        """A time of a call and the rate that it means, in words."""
        rate, unit = self.case.work.items / (1e-3 * call_ms), self.case.work.item
        prefix, scale = next(((p, s) for p, s in PREFIXES if rate >= s), ("", 1.0))
        return f"{milliseconds(call_ms)}, {rate / scale:.3g} {prefix}{unit}/s"


def make(model: RBM, test: Tensor, settings: Settings) -> list[Comparison]:
    """Compare on each case; the device is the CPU."""
    budget = timing.Budget(
        total_s=settings.seconds_a_comparison, sample_s=min(0.02, settings.seconds_a_comparison)
    )
    own = (_ising(settings), _rbm(model, test, settings), _normal(settings))
    pairs = [(case, next(peer for peer in case.peers if peer.name == "eager")) for case in own]
    with torch.inference_mode():
        return [_compare(case, peer, budget) for case, peer in [*pairs, *flows(settings)]]


def flows(settings: Settings) -> list[tuple[Case, Peer]]:
    """The cases of normalizing flows whose library is installed."""
    cases = {(case.op, case.name): case for case in table(["made_inverse", "rq_spline"])}
    found = [
        (cases[op, name], next(peer for peer in cases[op, name].peers if peer.name == library))
        for op, name, library in FLOWS[settings.quick]
    ]
    return [(case, peer) for case, peer in found if peer.missing() is None]


def _compare(case: Case, peer: Peer, budget: timing.Budget) -> Comparison:
    reference = next(peer for peer in case.peers if peer.name == "reference")
    name = "PyTorch" if peer.name == "eager" else peer.name
    same, as_reference = check(case, peer, "cpu"), check(case, reference, "cpu")
    inputs = case.inputs("cpu")
    return Comparison(
        case, name, same, as_reference, timing.compare(case.fastgen(inputs), peer.build(inputs), budget)
    )


def _reference(build: Any, inputs: Inputs) -> Call:
    call = build(inputs)

    def run() -> Any:
        with fastgen.use_backend("reference"):
            return call()

    return run


def _ising(settings: Settings) -> Case:
    side, chains = settings.timed_lattice, 16

    def inputs(side: int, chains: int, device: str) -> Inputs:
        up = fastgen.random.bernoulli(0.5, settings.seed, torch.arange(chains, device=device), n=side * side)
        return {
            "spins": (2 * up.to(torch.int8) - 1).view(chains, side, side),
            "beta": critical_beta(),
            "sweeps": STEPS,
            "seed": settings.seed,
        }

    def build(inputs: Inputs) -> Call:
        return lambda: fastgen.ops.ising(**inputs).spins

    same = statistical(
        magnetisation=lambda s: s.double().mean((1, 2)).abs(),
        energy=lambda s: -(s * (s.roll(1, 1) + s.roll(1, 2))).double().mean((1, 2)),
    )
    return Case(
        op="ising",
        name=f"{chains} lattices of {side} x {side}, critical, {STEPS} sweeps",
        inputs=partial(inputs, side, chains),
        fastgen=build,
        peers=(
            Peer("eager", torch_ising.build_sublattices, same, unpack=torch_ising.join),
            Peer("reference", partial(_reference, build), exact),
        ),
        work=Work(items=STEPS * chains * side * side, item="flips"),
        checks=lambda device: [inputs(min(side, 64), 64, device)],
    )


def _rbm(model: RBM, test: Tensor, settings: Settings) -> Case:
    weight, v_bias, h_bias = model.weight.detach(), model.v_bias.detach(), model.h_bias.detach()
    chains, (visible, hidden) = settings.timed_chains, weight.shape

    def inputs(device: str) -> Inputs:
        return {
            "v": test.flatten(1)[:chains].float(),
            "h": torch.zeros(chains, hidden),
            "weight": weight,
            "v_bias": v_bias,
            "h_bias": h_bias,
            "half_steps": 2 * STEPS,
            "seed": settings.seed,
        }

    def build(inputs: Inputs) -> Call:
        def run() -> tuple[Tensor, Tensor]:
            state = fastgen.ops.rbm_gibbs(**inputs)
            return state.v, state.h

        return run

    same = statistical(
        ink=lambda s: s[0].mean(1),
        hidden_on=lambda s: s[1].mean(1),
        free_energy=lambda s: model.free_energy(s[0].unflatten(1, model.shape)),
    )
    return Case(
        op="rbm_gibbs",
        name=f"{chains} chains, {visible} x {hidden}, {STEPS} steps",
        inputs=inputs,
        fastgen=build,
        # The reference adds in another order, so that once in a while a draw falls between the two sums.
        peers=(
            Peer("eager", torch_rbm.build, same),
            Peer("reference", partial(_reference, build), rows_equal(0.9)),
        ),
        work=Work(items=STEPS * chains, item="steps"),
    )


def _normal(settings: Settings) -> Case:
    rows, n = 64, settings.timed_lattice**2 // 4

    def inputs(n: int, device: str) -> Inputs:
        return {
            "seed": settings.seed,
            "sample_ids": torch.arange(rows, device=device),
            "n": n,
            "steps": 1,
            "device": device,
        }

    def build(inputs: Inputs) -> Call:
        return lambda: fastgen.random.normal(inputs["seed"], inputs["sample_ids"], n=inputs["n"])

    same = statistical(mean=lambda x: x.mean(1), square=lambda x: x.square().mean(1))
    return Case(
        op="random",
        name=f"{rows} x {n} normal numbers",
        inputs=partial(inputs, n),
        fastgen=build,
        peers=(
            Peer("eager", lambda inputs: lambda: torch.randn(rows, inputs["n"]), same),
            Peer("reference", partial(_reference, build), exact),
        ),
        work=Work(items=rows * n, item="numbers"),
        checks=lambda device: [inputs(4096, device)],
    )

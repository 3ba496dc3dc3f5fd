"""Run cases: compare outputs, then time, then hold the time against the machine's limits."""

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fastgen import native
from fastgen.backends import choose
from fastgen.bench import machine, peak_memory, timing
from fastgen.bench.case import Case, Inputs, Match, Peer
from fastgen.bench.limits import Limits
from fastgen.bench.threads import limited_to
from fastgen.ops._registry import OPS


@dataclass(frozen=True)
class Row:
    """One line of the table. What was not measured is None, and `note` says why.

    `match` is True, False (no time is given then) or None (the peer is absent). `ratio` is the peer's time
    over fastgen's. `limit_fraction` is the time that `limit` alone would take over fastgen's time; above 1,
    fastgen does the work in fewer operations than it was counted with. `rate` counts `rate_unit` a
    nanosecond.
    """

    op: str
    case: str
    peer: str
    device: str
    threads: int
    isa: str
    backend: str
    match: bool | None = None
    note: str = ""
    fastgen_ms: float | None = None
    peer_ms: float | None = None
    ratio: float | None = None
    ratio_lo: float | None = None
    ratio_hi: float | None = None
    pairs: int | None = None
    limit: str | None = None
    limit_fraction: float | None = None
    rate: float | None = None
    peer_rate: float | None = None
    rate_unit: str = ""
    peak_mb: float | None = None
    peer_peak_mb: float | None = None
    limits: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""

    @property
    def failed(self) -> bool:
        """Whether the row shows a wrong answer or a peer that broke down."""
        return self.match is False


@contextlib.contextmanager
def conditions(device: str, threads: int, isa: str | None) -> Iterator[None]:
    """Hold threads and instruction set for all that runs inside, without autograd; the device must be there.

    Raises:
        ValueError, RuntimeError: the device, the number of threads or the instruction set is not to be had.
    """
    kind = device.split(":", 1)[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}, wanted cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no GPU")
    chosen = native.instruction_set(isa) if isa else contextlib.nullcontext()
    # Convolutions of cuDNN round to TF32 by default: float32 is to mean the same to everyone.
    exact = (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        if kind == "cuda"
        else contextlib.nullcontext()
    )
    with limited_to(threads), chosen, exact, torch.inference_mode():
        yield


def run(
    cases: Iterable[Case],
    *,
    device: str,
    threads: int,
    limits: Limits,
    budget: timing.Budget,
    memory: bool = True,
    clock: timing.Clock | None = None,
) -> Iterator[Row]:
    """Yield a row for every peer of every case; `conditions` sets what `threads` only reports."""
    isa = native.module.isa() if native.module else ""
    header: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "isa": isa,
        "limits": asdict(limits),
        "machine": machine.machine(device),
        "versions": machine.versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    for case in cases:
        # Each shape of earlier cases would count against the limit that torch.compile sets to recompilations.
        torch.compiler.reset()
        peaks = (
            peak_memory.in_subprocess(case.op, case.name, device=device, threads=threads, isa=isa)
            if memory and not all(peer.missing() for peer in case.peers)
            else {}
        )
        for peer in case.peers:
            row = Row(op=case.op, case=case.name, peer=peer.name, backend=_backend(case, device), **header)
            row = replace(row, peak_mb=peaks.get("fastgen"), peer_peak_mb=peaks.get(peer.name))
            yield _measure(row, case, peer, limits, budget, clock)


def _backend(case: Case, device: str) -> str:
    """Return which implementation fastgen runs here, empty for what is not an op of fastgen."""
    word = case.registered or case.op
    return choose(word, torch.device(device).type)[0] if word in OPS else ""


def _measure(
    row: Row, case: Case, peer: Peer, limits: Limits, budget: timing.Budget, clock: timing.Clock | None
) -> Row:
    """Fill the row in: absence first, then the comparison, then times."""
    absent = peer.missing()
    if absent:
        return replace(row, note=absent)
    match = check(case, peer, row.device)
    row = replace(row, match=match.ok, note=match.how)
    if not match.ok:
        return row
    timed = timing.compare(
        case.fastgen(case.inputs(row.device)),
        peer.build(case.inputs(row.device)),
        # The reference is written to be read: nobody wants the third digit of how much faster the rest is.
        replace(budget, total_s=budget.total_s / 4) if peer.name == "reference" else budget,
        synchronize=torch.cuda.synchronize if row.device.startswith("cuda") else None,
        **({"clock": clock} if clock else {}),
    )
    bound = limits.binding(case.work)
    return replace(
        row,
        fastgen_ms=timed.a_ms,
        peer_ms=timed.b_ms,
        ratio=timed.ratio,
        ratio_lo=timed.ratio_lo,
        ratio_hi=timed.ratio_hi,
        pairs=timed.pairs,
        limit=bound[0] if bound else None,
        limit_fraction=1e3 * bound[1] / timed.a_ms if bound else None,
        rate=case.work.items / (1e6 * timed.a_ms),
        peer_rate=case.work.items / (1e6 * timed.b_ms),
        rate_unit=f"{case.work.item}/ns",
    )


def check(case: Case, peer: Peer, device: str) -> Match:
    """Compare the outputs on the case's check inputs. A peer that breaks down does not match."""

    def outputs(build: Callable[[Inputs], Callable[[], Any]]) -> list[Any]:
        return [build(inputs)() for inputs in case.check_inputs(device)]

    ours = outputs(case.fastgen)
    try:
        theirs = [peer.unpack(output) for output in outputs(peer.build)]
    except Exception as error:  # whatever a foreign library raises becomes a row, which fails the run
        first = next(iter(str(error).strip().splitlines()), "")
        return Match(False, f"{peer.name} broke down: {type(error).__name__}: {first}")
    return peer.match(ours, theirs)

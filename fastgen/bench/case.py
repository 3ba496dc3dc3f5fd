"""What a benchmark is made of: a case, its peers, the work done and the rule by which outputs are compared.

One table of cases (`fastgen.bench.cases`) serves the tests and the benchmarks: the small ones are marked
`quick`.
"""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Inputs = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """What one call has to do, at the least, whoever does it.

    `items` counts what a user counts (`item` names it: numbers, flips, updates). `bytes` (read and written),
    `reads` (bytes that are only read), `flops` (of 32 bits) and `draws` (random words of 32 bits) are held
    against the machine's limits.
    """

    items: float
    item: str
    bytes: float = 0.0
    reads: float = 0.0
    flops: float = 0.0
    draws: float = 0.0


@dataclass(frozen=True)
class Match:
    """Whether two implementations agree, and how that was seen."""

    ok: bool
    how: str


@dataclass(frozen=True)
class Peer:
    """Another implementation of the same work.

    `build(inputs)` imports, compiles and converts, all outside the clock, and returns the call to time.
    `unpack` turns what the call returns into what fastgen returns, outside the clock as well.
    `match(fastgen_outputs, peer_outputs)` compares lists of outputs, one for each of the case's checks.
    `missing()` says in words why the peer cannot run here and what to install, or returns None.
    """

    name: str
    build: Callable[[Inputs], Call]
    match: Callable[[list[Any], list[Any]], Match]
    unpack: Callable[[Any], Any] = lambda output: output
    missing: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Case:
    """One row group of the table: `op` on inputs of one size and format, against several peers.

    `inputs(device)` makes the timed inputs; `checks(device)` makes the list of inputs on which outputs are
    compared where the timed ones say too little (one chain has no spread), by default the timed ones alone.
    `registered` is the op's word in fastgen's registry where it is another than `op`.
    """

    op: str
    name: str
    inputs: Callable[[str], Inputs]
    fastgen: Callable[[Inputs], Call]
    peers: tuple[Peer, ...]
    work: Work
    quick: bool = False
    checks: Callable[[str], list[Inputs]] | None = None
    registered: str = ""

    def check_inputs(self, device: str) -> list[Inputs]:
        """Return the inputs on which outputs are compared."""
        return [self.inputs(device)] if self.checks is None else self.checks(device)


def needs(*modules: str, extra: str = "bench", remark: str = "") -> Callable[[], str | None]:
    """Return a `missing` for a peer that imports `modules`; `remark` ends what it says."""

    def missing() -> str | None:
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        if not absent:
            return None
        return f"{', '.join(absent)} not installed: pip install 'fastgen[{extra}]'{remark}"

    return missing


def needs_compiler() -> str | None:
    """Return why `torch.compile` cannot run on this CPU, or None."""
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return None
    return "no C++ compiler, which torch.compile needs: install g++ or clang++"

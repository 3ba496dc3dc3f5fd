"""The command `fastgen demo`."""

import argparse
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

from fastgen import files
from fastgen.bench.report import milliseconds
from fastgen.demo.settings import FULL, QUICK

NEEDED = {
    "matplotlib": "report",
    "jinja2": "report",
    "scipy": "bench",
    "mlxtend": "data",
    "tokenizers": "text",
    "gguf": "text",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments on `parser`."""
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="for report.html (default out)"
    )
    parser.add_argument("--quick", action="store_true", help="everything small, in seconds; ugly digits")


def execute(given: argparse.Namespace) -> int:
    """Do it all; 1 if fastgen and what it is held against disagree, else 0."""
    _check_packages()
    from fastgen.demo import (  # noqa: PLC0415 (optional packages)
        comparison,
        digits,
        flows,
        promises,
        report,
        spins,
        texts,
    )

    start = time.perf_counter()
    settings = QUICK if given.quick else FULL
    out = files.make_directory(given.out)
    print("training a Boltzmann machine on 4,000 handwritten digits", flush=True)
    machine = digits.make(settings, out / ("rbm-quick" if given.quick else "rbm"))
    value, error = machine.log_likelihood
    print(f"log-likelihood of the test digits {value:.1f} +- {error:.1f} nats\n")
    print("sampling Ising models", flush=True)
    lattices = spins.make(settings)
    print("\nlooking at flows of the zoo, in the plane and of small digits", flush=True)
    maps = flows.make(settings)
    print(f"{maps.held_out.bits_per_dimension:.2f} bits a pixel on the test digits")
    print("\ncomparing with PyTorch and flow libraries: answers first, then times", flush=True)
    rows = comparison.make(machine.model, machine.test, settings)
    for line in _table(rows):
        print(line)
    print("asking a language model, and timing it against the libraries that are installed", flush=True)
    language = texts.make(settings)
    for line in _tokens(language.speeds):
        print(line)
    for name, why in language.absent:
        print(f"  {name} is absent: {why}")
    kept = promises.make(machine.model, maps.digits, language.poet)
    for promise in kept:
        print(f"  {'yes' if promise.kept else 'NO ':<4} {promise.claim}")
    page = out / "report.html"
    took = time.perf_counter() - start
    report.write(page, settings, machine, lattices, maps, language, rows, kept, took)
    print(f"\n{time.perf_counter() - start:.0f} s; now look at {page}")
    right = all(row.same.ok and row.exact.ok for row in rows) and all(promise.kept for promise in kept)
    return 0 if right and all(speed.same.ok for speed in language.speeds) else 1


def _check_packages() -> None:
    missing = {
        package: extra for package, extra in NEEDED.items() if importlib.util.find_spec(package) is None
    }
    if missing:
        extras = ",".join(sorted(set(missing.values())))
        raise ModuleNotFoundError(f"the demo needs {', '.join(missing)}: pip install 'fastgen[{extras}]'")


def _table(rows: Sequence) -> list[str]:
    """The table of speeds."""
    form = "  {:<58} {:>8} {:>9} {:>9} {:>24}  {:<5} {}"
    lines = [form.format("", "against", "time", "fastgen", "ratio (95% interval)", "same", "exact")]
    for row in rows:
        timed = row.timed
        ratio = f"{timed.ratio:.3g} ({timed.ratio_lo:.3g} .. {timed.ratio_hi:.3g})"
        words = ["yes" if match.ok else "NO" for match in (row.same, row.exact)]
        times = milliseconds(timed.b_ms), milliseconds(timed.a_ms)
        lines.append(form.format(f"{row.case.op}: {row.case.name}", row.peer, *times, ratio, *words))
    return [*lines, ""]


def _tokens(speeds: Sequence) -> list[str]:
    """The table of tokens a second."""
    form = "  {:<36} {:>14} {:>12} {:>12} {:>24}"
    lines = [form.format("tokens a second", "against", "its", "fastgen's", "ratio (95% interval)")]
    for speed in speeds:
        words = ["", "", f"DIFFERS: {speed.same.how}"]
        if (timed := speed.timed) is not None:
            words = [f"{speed.tokens(timed.b_ms):.1f}", f"{speed.tokens(timed.a_ms):.1f}"]
            words.append(f"{timed.ratio:.3g} ({timed.ratio_lo:.3g} .. {timed.ratio_hi:.3g})")
        lines.append(form.format(speed.case.name, speed.peer, *words))
    return [*lines, ""]

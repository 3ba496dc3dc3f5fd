"""The command `fastgen bench`."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fastgen.bench import cases, limits, page, report, runner, threads, timing
from fastgen.bench.case import Case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments on `parser`."""
    ops = ", ".join(cases.ops())
    parser.add_argument("op", nargs="*", metavar="OP", help=f"ops to measure (default all): {ops}")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--threads", type=int, default=threads.available(), help="cores (default all)")
    parser.add_argument("--isa", help="instruction set of the C++ kernels (default the best of this CPU)")
    parser.add_argument("--quick", action="store_true", help="the small cases, short and without memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write a page to FILE, its chart beside"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; 0 if all peers present gave a matching answer, 1 if not, 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="fastgen bench", description="compare outputs, then time")
    add_arguments(parser)
    return execute(parser.parse_args(argv))


def execute(given: argparse.Namespace) -> int:
    """Run the benchmarks that parsed arguments ask for."""
    with contextlib.ExitStack() as stack:
        try:
            table = cases.table(given.op, quick=given.quick)
            for path in (given.json, given.markdown):
                if path:
                    report.check_writable(path)
            stack.enter_context(runner.conditions(given.device, given.threads, given.isa))
        except (OSError, ValueError, RuntimeError) as error:
            print(f"fastgen bench: {error}", file=sys.stderr)
            return 2
        rows = _run(table, given)
    if any(row.failed for row in rows):
        return 1
    if given.markdown:
        page.write([asdict(row) for row in rows], given.markdown)
    return 0


def _run(table: Sequence[Case], given: argparse.Namespace) -> list[runner.Row]:
    found = limits.measure(given.device, quick=given.quick)
    print(
        f"limits with {given.threads} threads: {found.words()}\n\n{report.terminal_header()}",
        flush=True,
    )
    rows = []
    for row in runner.run(
        table,
        device=given.device,
        threads=given.threads,
        limits=found,
        budget=timing.QUICK if given.quick else timing.Budget(),
        memory=not given.quick,
    ):
        print(report.terminal_line(row), flush=True)
        rows.append(row)
        if given.json:
            report.write_json(rows, given.json)
    return rows

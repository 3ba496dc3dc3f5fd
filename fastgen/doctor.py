"""`fastgen doctor`: what is here, which implementations run, and whether each agrees with the reference.

The checks take the small cases of the benchmark table, so that an op with a case cannot be forgotten here.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import numpy
import torch

import fastgen
from fastgen import native
from fastgen.backends import NAMES, Status, backends, choose, use_backend
from fastgen.bench import cases, machine
from fastgen.bench.case import Case
from fastgen.bench.runner import check
from fastgen.ops._registry import OPS

Rows = list[tuple[str, ...]]


class Check(NamedTuple):
    """One implementation held against the reference on one case."""

    op: str
    implementation: str
    case: str
    ok: bool
    how: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments: the doctor looks at everything."""


def execute(given: argparse.Namespace) -> int:
    """Print all tables; 1 if a check fails, else 0."""
    for title, rows in (("machine", _machine), ("build", _build), ("versions", _versions)):
        _show(title, _guarded(rows))
    _show("implementations", _guarded(_implementations))
    for reason in _reasons():
        print(f"  {reason}")
    print("\nchecks against the reference")
    failed = 0
    for found in checks():
        word = "ok" if found.ok else "FAILED"
        row = f"  {found.op:<10} {found.implementation:<16} {found.case:<38} {word:<7} {found.how}"
        print(row, flush=True)
        failed += not found.ok
    print(f"\n{failed} failed: {_advice()}" if failed else "\nall agree")
    return int(failed > 0)


def _advice() -> str:
    """What to do about checks that failed."""
    outdated = native.outdated()
    return f"the C++ extension is {outdated}" if outdated else "please report it"


def _guarded(rows: Callable[[], Rows]) -> Rows:
    """The rows, or one that says why there are none: a doctor who falls ill helps nobody."""
    try:
        return rows()
    except Exception as error:
        return [("unknown", f"{type(error).__name__}: {error}")]


def _show(title: str, rows: Rows) -> None:
    print(title)
    widths = [max(len(row[i]) for row in rows if len(row) > i) for i in range(max(map(len, rows)))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    print(flush=True)


def _machine() -> Rows:
    found = machine.machine("cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS")
    return [
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("CPU", str(found["cpu"])),
        ("cores", f"{cores} usable of {os.cpu_count()}"),
        ("threads", f"{torch.get_num_threads()} in torch; OMP_NUM_THREADS {limit or 'not set'}"),
        ("memory", f"{found['memory_gib']} GiB"),
        *[("GPU", words) for words in _gpus()],
    ]


def _gpus() -> list[str]:
    if torch.version.cuda is None and torch.version.hip is None:
        return [f"none: torch {torch.__version__} is built for the CPU alone"]
    if not torch.cuda.is_available():
        return [f"none: torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU or no driver"]
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _build() -> Rows:
    if native.module is None:
        return [("C++ extension", native.reason)]
    info = native.module.build_info()
    outdated = native.outdated()
    return [
        *([("C++ extension", outdated)] if outdated else []),
        ("C++ extension", f"{info['compiler']}, {info['build_type']}, against torch {info['torch']}"),
        ("CUDA kernels", f"built with CUDA {info['cuda']}" if info["cuda"] else "not built"),
        ("CPU features", " ".join(native.module.cpu_features()) or "none that the kernels care about"),
        ("instruction set", f"{native.module.isa()} in use; usable here: {', '.join(native.usable_isas())}"),
    ]


def _versions() -> Rows:
    found: Rows = [
        ("fastgen", fastgen.__version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("numpy", numpy.__version__),
    ]
    return found + [(name, _version(name, extra)) for name, extra in _requirements()]


def _requirements() -> Iterator[tuple[str, str]]:
    """Every other package that fastgen's own metadata names, with the first extra that brings it."""
    seen = {"fastgen", "torch", "numpy"}
    for line in importlib.metadata.requires("fastgen") or []:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"](\w+)", line)
        if name not in seen and not (extra and extra[1] in ("lint", "test")):
            seen.add(name)
            yield name, extra[1] if extra else ""


def _version(package: str, extra: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        wanted = f"'fastgen[{extra}]'" if extra else package
        return f"not installed: pip install {wanted}"


def _implementations() -> Rows:
    """Where each implementation of each op can run, and which one does on the devices of this machine."""
    places: dict[tuple[str, str], list[str]] = {}
    for status in backends():
        places.setdefault((status.op, status.backend), []).extend([status.device] if status.usable else [])
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows: Rows = [("op", *NAMES, *(f"runs on {device}" for device in here))]
    for op in sorted(OPS):
        cells = (
            ", ".join(d for d in places[op, b] if d in here) or "no" if (op, b) in places else "-"
            for b in NAMES
        )
        rows.append((op, *cells, *(_runs(op, device) for device in here)))
    return rows


def _runs(op: str, device: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reasons of a fallback stand below the table
        return choose(op, device)[0]


def _reasons() -> list[str]:
    """Why implementations are not usable on the device that they are made for."""
    home = {"native": "cpu", "triton": "cuda", "cuda": "cuda"}
    unusable = [s for s in backends() if not s.usable and home.get(s.backend) == s.device]
    return list(dict.fromkeys(f"{status.backend}: {status.reason}" for status in unusable))


def checks() -> Iterator[Check]:
    """Hold each usable implementation, the native one with each instruction set, against the reference."""
    try:
        quick = cases.table(quick=True)
    except Exception as error:  # one op whose cases do not load must not hide the others' state
        yield Check(
            "all", "", "", False, f"the table of cases does not load: {type(error).__name__}: {error}"
        )
        return
    for status in backends():
        if status.usable and status.backend != "reference":
            mine = [case for case in quick if (case.registered or case.op) == status.op]
            if not mine:
                yield Check(status.op, status.backend, "", False, "the table has no quick case for this op")
            for isa in native.usable_isas() if status.backend == "native" else [""]:
                yield from (_check(status, case, isa) for case in mine)


def _check(status: Status, case: Case, isa: str) -> Check:
    label = " ".join(filter(None, (status.backend, isa)))
    try:
        reference = next(peer for peer in case.peers if peer.name == "reference")
        with ExitStack() as setting:
            setting.enter_context(use_backend(status.backend))
            if isa:
                setting.enter_context(native.instruction_set(isa))
            match = check(case, reference, status.device)
    except Exception as error:  # a kernel that breaks down is what the doctor is to report
        return Check(status.op, label, case.name, False, f"{type(error).__name__}: {error}")
    return Check(status.op, label, case.name, match.ok, match.how)

"""The table of cases, one module an op, each with a tuple `CASES`. Tests and benchmarks share it."""

import importlib
import pkgutil
from collections.abc import Sequence

from fastgen.bench.case import Case


def ops() -> list[str]:
    """Return the ops that have cases, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def table(names: Sequence[str] = (), *, quick: bool | None = None) -> list[Case]:
    """Return the cases of the named ops (all if none is named); `quick` keeps the small or the large ones."""
    unknown = sorted(set(names) - set(ops()))
    if unknown:
        raise ValueError(f"no benchmark for {', '.join(unknown)}; there are {', '.join(ops())}")
    found: list[Case] = []
    for op in names or ops():
        found += importlib.import_module(f"{__name__}.{op}").CASES
    return [case for case in found if quick is None or case.quick == quick]

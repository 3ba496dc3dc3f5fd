"""pytest-benchmark over the table of cases: fastgen and each peer of one case form a group.

pytest benchmarks                    the small cases
pytest benchmarks --full             the large ones
"""

from collections.abc import Callable

import pytest
import torch

from fastgen.bench import cases
from fastgen.bench.case import Case


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="time the large cases instead of the small ones")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `case` and `name` every implementation of every case of the op that the file is named after."""
    op = metafunc.module.__name__.rpartition(".")[2].removeprefix("test_")
    table = cases.table([op], quick=not metafunc.config.getoption("--full"))
    pairs = [(case, name) for case in table for name in ("fastgen", *(peer.name for peer in case.peers))]
    metafunc.parametrize(("case", "name"), pairs, ids=[f"{case.name}-{name}" for case, name in pairs])


@pytest.fixture
def run(benchmark) -> Callable[[Case, str], None]:
    """Time one implementation of a case; an absent peer is a skip that says why."""

    def time(case: Case, name: str) -> None:
        benchmark.group = f"{case.op} {case.name}"
        peer = next((peer for peer in case.peers if peer.name == name), None)
        if peer and (reason := peer.missing()):
            pytest.skip(reason)
        with torch.inference_mode():
            benchmark((peer.build if peer else case.fastgen)(case.inputs("cpu")))

    return time

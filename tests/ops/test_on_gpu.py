"""On a real GPU: every GPU implementation of every op against the reference, by its benchmark case's rule."""

import pytest
import torch

from fastgen import use_backend
from fastgen.backends import usable
from fastgen.bench.cases import table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
CASES = {f"{case.op}: {case.name}": case for case in table(quick=True)}


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(name, backend):
    case = CASES[name]
    if not usable(case.registered or case.op, backend, "cuda"):
        pytest.skip(f"{case.op} has no {backend} implementation that is usable here")
    reference = next(peer for peer in case.peers if peer.name == "reference")
    inputs = case.check_inputs("cuda")
    with use_backend(backend):
        ours = [case.fastgen(i)() for i in inputs]
    match = reference.match(ours, [reference.unpack(reference.build(i)()) for i in inputs])
    assert match.ok, match.how

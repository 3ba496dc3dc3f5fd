"""Every GPU implementation of every op against the reference, values and gradients, on the table of cases.

On a GPU (`make gpu`) all cases run. Gradients of the small ones also run on the CPU, in Triton's interpreter;
for values each op has tests of its own there.
"""

import pytest
import torch

from fastgen import use_backend
from fastgen.backends import usable
from fastgen.bench.cases import table
from fastgen.ops._registry import OPS
from fastgen.testing import recorded
from fastgen.tolerances import ROUNDING, allowed

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
NO_TRITON = not usable("linear", "triton", "cpu")
INTERPRETED = [pytest.mark.slow, pytest.mark.skipif(NO_TRITON, reason="Triton's interpreter is not here")]


def op_of(case):
    return case.registered or case.op


def places(case, interpreted=False):
    """Device and backend of every implementation that can be held against the reference."""
    for backend in ("cuda", "triton"):
        if backend in OPS[op_of(case)].implementations:
            name = f"{case.op}: {case.name}"
            yield pytest.param(case, "cuda", backend, marks=ON_GPU, id=f"{name}-{backend}")
            if interpreted and backend == "triton" and case.quick:
                yield pytest.param(case, "cpu", backend, marks=INTERPRETED, id=f"{name}-interpreted")


CASES = [case for case in table() if any(peer.name == "reference" for peer in case.peers)]
VALUES = [place for case in CASES for place in places(case)]
DIFFERENTIABLE = [case for case in CASES if OPS[op_of(case)].backward is not None]
GRADIENTS = [place for case in DIFFERENTIABLE for place in places(case, interpreted=True)]


def need(op, backend, device):
    if not usable(op, backend, device):
        pytest.skip(f"{op} has no {backend} implementation that is usable here")


@pytest.mark.parametrize("case, device, backend", VALUES)
def test_values_match_the_reference(case, device, backend):
    need(op_of(case), backend, device)
    reference = next(peer for peer in case.peers if peer.name == "reference")
    inputs = case.check_inputs(device)
    with use_backend(backend):
        ours = [case.fastgen(i)() for i in inputs]
    match = reference.match(ours, [reference.unpack(reference.build(i)()) for i in inputs])
    assert match.ok, match.how


def gradients(backend, func, arguments, wide=False):
    """Of a sum of the results with fixed weights: by the floating tensors among the arguments."""
    leaves = [
        a.detach().to(torch.float64 if wide else a.dtype, copy=True).requires_grad_()
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for a in arguments
    ]
    wanted = [a for a in leaves if isinstance(a, torch.Tensor) and a.requires_grad]
    apart = f"{func._opname}_backward"  # an op of its own, which a backend may lack
    with use_backend(backend):
        results = torch.utils._pytree.tree_leaves(func(*leaves))
        results = [y for y in results if isinstance(y, torch.Tensor) and y.requires_grad]
        draw = torch.Generator().manual_seed(0)
        weights = [torch.randn(y.shape, generator=draw, dtype=torch.float64).to(y) for y in results]
        if apart not in OPS or backend in OPS[apart].implementations:
            return torch.autograd.grad(results, wanted, weights, allow_unused=True)
    return torch.autograd.grad(results, wanted, weights, allow_unused=True)


def bounds(func, arguments):
    """Of each gradient its dtype and the largest error: by what the reference loses.

    Nothing here is more exact than float64; what is lost in it is what is lost in float32, in roundings.
    """
    double = any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in arguments)
    if double:
        arguments = [
            a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
        ]
    scale = ROUNDING[torch.float64] / ROUNDING[torch.float32] if double else 1.0
    theirs = gradients("reference", func, arguments)
    exact = gradients("reference", func, arguments, wide=True)
    for b, wanted in zip(theirs, exact, strict=True):
        most = None if b is None else scale * allowed(b, wanted, b.dtype, losses=8, roundings=16)
        yield (torch.float64 if double else getattr(b, "dtype", None)), most


@pytest.mark.parametrize("case, device, backend", GRADIENTS)
def test_gradients_lose_little_more_than_those_of_the_reference(case, device, backend):
    need(op_of(case), backend, device)
    calls = recorded(case.fastgen(case.inputs(device)))
    func, arguments = next(call for call in calls if call[0]._opname == op_of(case))
    ours = gradients(backend, func, arguments)
    exact = gradients("reference", func, arguments, wide=True)
    assert any(wanted is not None for wanted in exact)
    for a, wanted, bound in zip(ours, exact, bounds(func, arguments), strict=True):
        assert (a is None) == (wanted is None)
        if a is not None and wanted is not None:
            dtype, most = bound
            assert a.dtype == dtype and (a.double() - wanted).abs().max() <= most

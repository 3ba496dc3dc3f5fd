"""What holds for every registered op: the dispatcher's rules, compilation, the modes of torch, its rooms.

The arguments come from the quick cases of `fastgen.bench.cases`, recorded as they reach the dispatcher.
"""

from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from fastgen import random, use_backend
from fastgen.backends import usable
from fastgen.bench.cases import table
from fastgen.ops import ising, linear
from fastgen.ops._registry import OPS
from fastgen.testing import recorded

ROOT = Path(__file__).parents[2]
# Whole texts are no graph: what follows depends on the tokens that came. Their ops have cases of their own.
CASES = {f"{case.op}: {case.name}": case for case in table(quick=True) if case.op != "generate"}


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    """torch.compile keeps only so many graphs of the function that it puts around every op."""
    torch._dynamo.reset()


def calls_of(case):
    return recorded(case.fastgen(case.inputs("cpu")))


def flat(result):
    return [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]


def differentiable(arguments, dtype=torch.float64):
    """The arguments in float64, those that are floating as leaves that want gradients."""
    return [
        a.detach().to(dtype).requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in arguments
    ]


def first_call(name):
    return next(call for case in CASES.values() for call in calls_of(case) if call[0]._opname == name)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def test_every_op_has_a_quick_case():
    called = {func._opname for case in CASES.values() for func, _ in calls_of(case)}
    assert called == set(OPS)


@pytest.mark.parametrize("case", CASES)
def test_opcheck_passes(case):
    for func, arguments in calls_of(CASES[case]):
        torch.library.opcheck(func, arguments)


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_into_one_graph_with_the_same_result(case):
    run = CASES[case].fastgen(CASES[case].inputs("cpu"))
    assert same(torch.compile(run, fullgraph=True, backend="aot_eager")(), run())


def test_compiled_once_for_all_seeds_and_steps():
    def draws(seed, step):
        ids = torch.arange(2)
        spins = torch.ones(2, 4, 4, dtype=torch.int8)
        return random.uniform(seed, ids, step=step, n=4), ising(spins, 0.4, seed=seed, first_step=step).spins

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(draws, fullgraph=True, backend=counter)
    for step in range(12):
        assert same(compiled(100 + step, step), draws(100 + step, step))
    assert counter.frame_count <= 3


def test_no_seed_compiles_too():
    spins = torch.ones(2, 4, 4, dtype=torch.int8)
    compiled = torch.compile(lambda x: ising(x, 0.1).spins, fullgraph=True, backend="eager")
    torch.manual_seed(3)
    first = compiled(spins)
    assert not torch.equal(compiled(spins), first)


@pytest.mark.parametrize("case", CASES)
def test_inference_mode_and_autocast_change_nothing(case):
    run = CASES[case].fastgen(CASES[case].inputs("cpu"))
    wanted = run()
    with torch.inference_mode():
        assert same(run(), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(run(), wanted)


@pytest.mark.parametrize("case", CASES)
def test_the_profiler_sees_the_op(case):
    run = CASES[case].fastgen(CASES[case].inputs("cpu"))
    wanted = {f"fastgen::{func._opname}" for func, _ in calls_of(CASES[case])}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    assert wanted <= {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("case", CASES)
def test_vmap_says_why_not(case):
    func, arguments = calls_of(CASES[case])[0]
    place = next(i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor))

    def run(mapped):
        return func(*arguments[:place], mapped, *arguments[place + 1 :])

    with pytest.raises(NotImplementedError, match="put the mapped dimension into the batch"):
        torch.func.vmap(run)(torch.stack([arguments[place]] * 2))


@pytest.mark.parametrize("name", OPS)
def test_meta_tensors_get_shapes_without_work(name):
    func, arguments = first_call(name)
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    shapes = [(x.shape, x.dtype) for x in flat(func(*meta))]
    assert shapes == [(x.shape, x.dtype) for x in flat(func(*arguments))]


@pytest.mark.parametrize("name", OPS)
def test_what_a_backend_cannot_do_is_said(name):
    func, arguments = first_call(name)
    for backend in ("native", "triton", "cuda"):
        if not usable(name, backend, "cpu"):
            with use_backend(backend), pytest.raises(RuntimeError, match=f"use_backend\\('{backend}'\\)"):
                func(*arguments)


DIFFERENTIABLE = [name for name, op in OPS.items() if op.backward is not None]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_agree_with_finite_differences_twice(name):
    func, arguments = first_call(name)
    arguments = differentiable(arguments)
    assert torch.autograd.gradcheck(func, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(func, arguments, fast_mode=True)


def tangents_like(arguments):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in flat(arguments)]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_agrees_with_reverse_mode(name):
    func, arguments = first_call(name)
    leaves = differentiable(arguments)
    places = [i for i, a in enumerate(leaves) if isinstance(a, torch.Tensor) and a.requires_grad]
    given = [leaves[i].detach() for i in places]

    def run(*some):
        whole = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
        for place, x in zip(places, some, strict=True):
            whole[place] = x
        return tuple(x for x in flat(func(*whole)) if x.is_floating_point())

    tangents = tangents_like(given)
    values, found = torch.func.jvp(run, tuple(given), tuple(tangents))
    assert same(values, run(*given))
    pull = torch.func.vjp(run, *given)[1]
    weights = tangents_like(values)
    forwards = sum((w * t).sum() for w, t in zip(weights, found, strict=True))
    backwards = sum((g * t).sum() for g, t in zip(pull(tuple(weights)), tangents, strict=True))
    torch.testing.assert_close(forwards, backwards)
    for requires_grad in (False, True):
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(x.clone().requires_grad_(requires_grad), t)
                for x, t in zip(given, tangents, strict=True)
            ]
            both = [forward_ad.unpack_dual(x) for x in run(*duals)]
        assert same([x.primal for x in both], values)
        pairs = [
            (x.tangent, t) for x, t in zip(both, found, strict=True) if t.numel()
        ]  # of none there is none
        torch.testing.assert_close([mine for mine, _ in pairs], [wanted for _, wanted in pairs])


def test_the_short_way_past_the_dispatcher_keeps_tangents():
    x, weight, tangent = tangents_like([torch.empty(3, 4), torch.empty(5, 4), torch.empty(3, 4)])
    assert torch.equal(torch.func.jvp(lambda x: linear(x, weight), (x,), (tangent,))[1], tangent @ weight.T)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(linear(forward_ad.make_dual(x, tangent), weight))
    assert torch.equal(found.tangent, tangent @ weight.T) and torch.equal(found.primal, linear(x, weight))


@pytest.mark.parametrize("name", [name for name in OPS if name not in DIFFERENTIABLE])
def test_a_tangent_is_not_lost_without_a_word(name):
    func, arguments = first_call(name)
    place = next((i for i, x in enumerate(arguments) if torch.is_tensor(x) and x.is_floating_point()), None)
    if place is None:
        pytest.skip("no argument can have a tangent")

    def run(x):
        return func(*arguments[:place], x, *arguments[place + 1 :])

    whole = arguments[place]
    with pytest.raises(NotImplementedError, match=f"{name} has no derivative, but was given a tangent"):
        torch.func.jvp(run, (whole,), (torch.ones_like(whole),))
    with forward_ad.dual_level():
        run(whole)  # which has none
        with pytest.raises(NotImplementedError, match=f"{name} has no derivative, but was given a tangent"):
            run(forward_ad.make_dual(whole, torch.ones_like(whole)))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_opcheck_passes_where_gradients_are_wanted(name):
    func, arguments = first_call(name)
    torch.library.opcheck(func, differentiable(arguments))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_and_backward_compile_into_one_graph(name):
    func, arguments = first_call(name)

    def gradients(run):
        leaves = differentiable(arguments)
        sum(x.sum() for x in flat(run(*leaves)) if x.requires_grad).backward()
        return [a.grad for a in leaves if isinstance(a, torch.Tensor) and a.requires_grad]

    compiled = torch.compile(func, fullgraph=True, backend="aot_eager")
    assert same(gradients(compiled), gradients(func))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_transforms_of_torch_func_give_the_same_gradients(name):
    func, arguments = first_call(name)
    leaves = differentiable(arguments)
    places = [i for i, a in enumerate(leaves) if isinstance(a, torch.Tensor) and a.requires_grad]
    every = tuple(range(len(places)))

    def total(*given):
        whole = list(leaves)
        for place, x in zip(places, given, strict=True):
            whole[place] = x
        return sum(x.square().sum() for x in flat(func(*whole)) if x.is_floating_point())

    def slope(first, *rest):
        return torch.func.grad(total)(first, *rest).square().sum()

    given = [leaves[i] for i in places]
    wanted = torch.autograd.grad(total(*given), given, create_graph=True)
    (wanted_slope,) = torch.autograd.grad(wanted[0].square().sum(), given[0])
    given = [x.detach() for x in given]
    for found in (
        torch.func.grad(total, every)(*given),
        torch.func.vjp(total, *given)[1](torch.ones((), dtype=torch.float64)),
        torch.func.jacrev(total, every, chunk_size=1)(*given),
    ):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.func.grad(slope)(*given), wanted_slope)

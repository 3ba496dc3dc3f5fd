"""Ops that go from the public function straight to C++: the same results, and who is sent the long way."""

import sys
import threading
import weakref
from contextlib import nullcontext

import pytest
import torch

from fastgen import native, use_backend
from fastgen.bench.cases import table
from fastgen.ops import PackedWeight, decode_attention, linear, packed_linear
from fastgen.ops._registry import OPS, backends
from fastgen.testing import recorded, with_threads

pytestmark = pytest.mark.skipif(native.module is None, reason="the C++ extension is not built")

# Gradients, and several new positions of a sequence, whose queries have to be put one after the other.
LONG = ("gradients", "3 new")
DIRECT = sorted(name for name in OPS if hasattr(native.module, name))
CASES = {
    f"{case.op}: {case.name}": case
    for case in table(quick=True)
    if case.op in DIRECT and not any(word in case.name for word in LONG)
}


@pytest.fixture
def long_ways(monkeypatch):
    """The ops that were called the long way, which is where an implementation is chosen."""
    taken, choose = [], backends.choose
    monkeypatch.setattr(backends, "choose", lambda op, device: taken.append(op) or choose(op, device))
    return taken


def tensors(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def test_the_small_ops_are_direct():
    assert {"decode_attention", "layer_norm", "linear", "packed_linear", "rms_norm", "rope"} <= set(DIRECT)


@pytest.mark.parametrize("case", CASES)
def test_the_short_way_gives_what_the_long_way_gives(case, long_ways):
    run = CASES[case].fastgen(CASES[case].inputs("cpu"))
    short = tensors(run())
    assert long_ways == []
    assert recorded(run) and set(long_ways) == {CASES[case].op}  # what records the calls watches them
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        long = tensors(run())
    for one, other in zip(short, long, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()


def linear_inputs():
    generator = torch.Generator().manual_seed(2)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((3, 32), (5, 32), (5,)))
    return {"x": x, "weight": weight, "bias": bias, "residual": torch.randn(3, 5, generator=generator)}


def turned(x):
    """The same numbers, as a tensor whose memory holds them with the other sign."""
    return torch._neg_view(-x)


UNUSUAL = {
    "strided x": lambda given: given | {"x": given["x"].T.contiguous().T},
    "expanded x": lambda given: given | {"x": given["x"][:1].expand(3, 32)},
    "bfloat16 x": lambda given: given | {name: given[name].bfloat16() for name in ("x", "residual")},
    "bfloat16 bias": lambda given: given | {"bias": given["bias"].bfloat16()},
    "strided residual": lambda given: given | {"residual": given["residual"].T.contiguous().T},
    "negated x": lambda given: given | {"x": turned(given["x"])},
    "negated bias": lambda given: given | {"bias": turned(given["bias"])},
    "x that wants a gradient": lambda given: given | {"x": given["x"].clone().requires_grad_()},
    "bias that wants a gradient": lambda given: given | {"bias": torch.nn.Parameter(given["bias"])},
    "no tensor": lambda given: given | {"x": given["x"].tolist()},
    "a subclass": lambda given: given | {"x": torch.nn.Buffer(given["x"]).as_subclass(Tensor2)},
}


class Tensor2(torch.Tensor):
    """A tensor that somebody else made."""


def packed(given):
    return given | {"weight": PackedWeight.pack(given["weight"], "q4_1")}


@pytest.mark.parametrize("op, form", [(linear, dict), (packed_linear, packed)])
@pytest.mark.parametrize("change", UNUSUAL)
def test_what_is_unusual_goes_the_long_way(op, form, change, long_ways):
    given = form(UNUSUAL[change](linear_inputs()))
    if change == "no tensor":
        with pytest.raises(TypeError, match="x is list"):
            op(**given)
        return
    came = op(**given)
    assert set(long_ways) == {op.__name__}
    assert came.requires_grad == ("gradient" in change)
    wanted = op(**form(linear_inputs()))
    assert torch.allclose(came.float()[:1], wanted[:1], atol=0.05 if "bfloat16" in change else 1e-6)


@pytest.mark.parametrize("op, form", [(linear, dict), (packed_linear, packed)])
@pytest.mark.parametrize(
    "mode", [nullcontext, torch.no_grad, torch.inference_mode, lambda: with_threads(1)], ids=range(4)
)
def test_modes_that_are_no_matter(op, form, mode, long_ways):
    given = form(linear_inputs())
    wanted = op(**given)
    if mode in (torch.no_grad, torch.inference_mode):
        given["bias"] = torch.nn.Parameter(given["bias"])
    with mode():
        came = op(**given)
        assert came.is_inference() == torch.is_inference_mode_enabled() and not came.requires_grad
    assert torch.equal(came, wanted) and long_ways == []


def test_another_backend_is_not_passed_over(long_ways):
    given = linear_inputs()
    with use_backend("reference"):
        linear(**given)
    assert long_ways == ["linear"]


@pytest.mark.parametrize(
    "name, wrong, error",
    [
        ("x", torch.ones(3, 33), ValueError),
        ("x", torch.tensor(1.0), ValueError),
        ("x", torch.ones(3, 32, device="meta"), ValueError),
        ("x", torch.ones(3, 32).to_sparse(), TypeError),
        ("bias", torch.ones(5, 1), ValueError),
        ("bias", torch.ones(5, dtype=torch.int64), TypeError),
        ("residual", torch.ones(5, 3), ValueError),
        ("residual", torch.ones(15), ValueError),
        ("residual", torch.ones(3, 5).double(), TypeError),
        ("activation", "swish", ValueError),
        ("activation", ["relu"], ValueError),
        ("activation", 1, ValueError),
    ],
    ids=str,
)
@pytest.mark.parametrize("op, form", [(linear, dict), (packed_linear, packed)])
def test_what_is_wrong_is_refused_as_ever(op, form, name, wrong, error):
    with pytest.raises(error, match=name):
        op(**form(linear_inputs()) | {name: wrong})


def decode_inputs():
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(2, 4, 1, 8, generator=generator)
    keys, values = (torch.randn(2, 2, 64, 8, generator=generator) for _ in range(2))
    return {"q": q, "keys": keys, "values": values, "lengths": torch.tensor([5, 64])}


DECODING = {
    "as it is": lambda given: given,
    "lse": lambda given: given | {"return_lse": True},
    "settings": lambda given: given | {"scale": 0.3, "window": 7, "softcap": 20.0},
    "packed": lambda given: given | {"q": given["q"].squeeze(2), "query_starts": torch.tensor([0, 1, 2])},
    "pages": lambda given: given | {"block_table": torch.tensor([[1], [0]], dtype=torch.int32)},
    "strided": lambda given: given | {name: given[name].mT.contiguous().mT for name in ("keys", "values")},
    "cache in bfloat16": lambda given: given | {n: given[n].bfloat16() for n in ("keys", "values")},
}


@pytest.mark.parametrize("change", DECODING)
def test_decode_attention_goes_both_ways(change, long_ways):
    given = DECODING[change](decode_inputs())
    short = tensors(decode_attention(**given))
    assert long_ways == (["decode_attention"] if change == "strided" else [])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        long = tensors(decode_attention(**given))
    assert "decode_attention" in long_ways
    for one, other in zip(short, long, strict=True):
        assert torch.equal(one, other) and one.shape == other.shape and one.stride() == other.stride()


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": torch.tensor([5, 65])},
        {"lengths": torch.tensor([-1, 3])},
        {"lengths": torch.tensor([[5, 64]])},
        {"window": 0},
        {"softcap": 0.0},
        {"scale": float("nan")},
        {"query_starts": torch.tensor([0, 1, 2])},
        {"block_table": torch.tensor([[1], [2]], dtype=torch.int32)},
        {"values": torch.ones(2, 2, 64, 9)},
        {"keys": torch.ones(2, 3, 64, 8), "values": torch.ones(2, 3, 64, 8)},
    ],
    ids=str,
)
def test_what_is_wrong_with_decoding_is_refused_as_ever(change):
    name = "q " if "query_starts" in change else next(iter(change))
    with pytest.raises(ValueError, match=name):
        decode_attention(**decode_inputs() | change)


def test_results_are_let_go_and_arguments_too():
    given = packed(linear_inputs())
    before = {name: sys.getrefcount(value) for name, value in given.items()}
    for _ in range(100):
        y = packed_linear(**given)
    assert {name: sys.getrefcount(value) for name, value in given.items()} == before
    watched = weakref.ref(y)
    del y
    assert watched() is None


def test_threads_of_python_do_not_disturb_each_other():
    inputs = [linear_inputs()["x"] + i for i in range(4)]
    weight = linear_inputs()["weight"]
    wanted, wrong = [linear(x, weight) for x in inputs], []

    def run(x, y):
        wrong.extend(1 for _ in range(500) if not torch.equal(linear(x, weight), y))

    threads = [threading.Thread(target=run, args=pair) for pair in zip(inputs, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_default_dtype_has_no_say():
    given = packed(linear_inputs())
    wanted = packed_linear(**given)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(packed_linear(**given), wanted)
        half = packed_linear(given["x"].bfloat16(), given["weight"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert half.dtype == torch.bfloat16

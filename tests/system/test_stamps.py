"""Stamps: every kind of write that changes a tensor, and none that does not."""

import numpy as np
import pytest
import torch

from fastgen.stamps import PROBES, Stamp, modules_of, tensors_of


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((40, 30), (17,), (), (0, 3))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_it_holds_until_something_is_written(dtype):
    mine = tensors(dtype)
    stamp = Stamp(mine)
    assert stamp.holds(mine) and stamp.holds(iter(mine))
    mine[0][3, 4] = 1  # counted, whatever the place
    assert not stamp.holds(mine)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64, torch.float8_e4m3fn, torch.uint64])
def test_numbers_of_every_kind_are_read(dtype):
    numbers = torch.arange(1.0, 41).to(dtype)
    for view in (numbers, numbers.view(8, 5).t(), numbers.conj(), numbers[3]):
        stamp = Stamp([view])
        assert stamp.holds([view])
        numbers.data.copy_(torch.arange(2.0, 42).to(dtype))
        assert not stamp.holds([view])
        numbers.data.copy_(torch.arange(1.0, 41).to(dtype))
        assert stamp.holds([view])


def test_several_dtypes_stand_side_by_side():
    mine = tensors() + tensors(torch.bfloat16) + tensors(torch.bool)
    stamp = Stamp(mine)
    assert stamp.holds(mine)
    mine[5].data.mul_(2)
    assert not stamp.holds(mine)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.data.add_(1),
        lambda x: np.add(x.numpy(), 1, out=x.numpy()),
        lambda x: setattr(x, "data", x.data.clone()),
        lambda x: setattr(x, "data", x.data[None]),
        lambda x: setattr(x, "data", x.data.view(torch.int32)),
    ],
    ids=["data", "NumPy", "assigned", "shape", "dtype"],
)
def test_what_no_counter_tells_is_seen(write, which):
    mine = tensors()
    stamp = Stamp(mine)
    versions = [x._version for x in mine]
    write(mine[which])
    assert [x._version for x in mine] == versions
    assert not stamp.holds(mine)


def test_memory_that_comes_back_is_not_taken_for_what_was_there():
    x = torch.nn.Parameter(torch.zeros(1000, 1000))
    stamp = Stamp([x])
    for _ in range(20):  # an address that was given back is soon given out again
        x.data = torch.zeros(1000, 1000)
        assert not stamp.holds([x])


def test_equal_numbers_elsewhere_nan_and_another_order_are_told_apart():
    mine = [torch.full((9,), torch.nan), torch.full((9,), -0.0)]
    stamp = Stamp(mine)
    assert stamp.holds(mine)
    assert not stamp.holds(mine[::-1]) and not stamp.holds(mine[:1]) and not stamp.holds([])
    assert not stamp.holds([x.clone() for x in mine])
    mine[1].data.neg_()
    assert not stamp.holds(mine)


def test_memory_with_gaps_and_inference_tensors():
    x = torch.arange(60.0).view(6, 10).t()[1:, ::2]
    stamp = Stamp([x])
    assert stamp.holds([x])
    x.data.mul_(2)
    assert not stamp.holds([x])
    with torch.inference_mode():
        y = torch.ones(PROBES)
        stamp = Stamp([y])
        y.add_(1)  # which is not counted there
        assert not stamp.holds([y])


def test_a_write_that_nothing_tells_can_be_told():
    x = torch.zeros(100, 100)
    stamp = Stamp([x])
    x.data[1, 1] = 1.0
    assert stamp.holds([x])  # as its docstring says
    torch.autograd.graph.increment_version(x)
    assert not stamp.holds([x])


def test_modules_and_tensors_are_those_that_torch_names():
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.BatchNorm1d(3)), torch.nn.ReLU()
    )
    model.register_module("none", None)
    model.register_buffer("nothing", None)
    assert set(modules_of(model)) == set(model.modules())
    wanted = {id(x) for x in [*model.parameters(), *model.buffers()]}
    assert {id(x) for x in tensors_of(*modules_of(model))} == wanted
    assert Stamp(tensors_of(torch.nn.ReLU())).holds([])

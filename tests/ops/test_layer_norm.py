"""The op layer_norm: what it has and rms_norm has not. The rest is in test_rms_norm.py."""

import pytest
import torch
from torch.nn import functional as F

from fastgen import use_backend
from fastgen.backends import usable
from fastgen.ops import layer_norm
from fastgen.ops._registry import OPS

HERE = [name for name in OPS["layer_norm"].implementations if usable("layer_norm", name, "cpu")]
EPS = 1e-5


def make(rows, width):
    """x, weight, bias."""
    g = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=g) for shape in ((rows, width), (width,), (width,))]


@pytest.mark.parametrize("backend", HERE)
def test_a_mean_far_from_zero_costs_no_more_than_in_pytorch(backend):
    x, weight, bias = make(4, 300)
    x += 1000
    with use_backend(backend):
        came = layer_norm(x, weight, bias, eps=EPS)
    wanted = F.layer_norm(x.double(), (300,), weight.double(), bias.double(), EPS)
    lost = (F.layer_norm(x, (300,), weight, bias, EPS) - wanted).abs().max()
    assert (came - wanted).abs().max() <= 2 * lost + 1e-5


@pytest.mark.parametrize("backend", HERE)
def test_no_bias_is_a_bias_of_zero(backend):
    x, weight, bias = make(4, 30)
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    others = [t.clone().requires_grad_() for t in (x, weight)]
    with use_backend(backend):
        y, same = layer_norm(*leaves, eps=EPS), layer_norm(*others, torch.zeros_like(bias), eps=EPS)
        assert torch.equal(y, same)
        y.sum().backward()
        same.sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(leaves, others, strict=True))


@pytest.mark.parametrize(
    "bias, error, message",
    [
        (torch.ones(4), ValueError, "bias has shape (4,), wanted (5,) as rows of x"),
        (0.0, TypeError, "bias is float, wanted a dense floating tensor"),
        (torch.ones(5, device="meta"), ValueError, "bias is on meta, wanted cpu as x"),
    ],
)
def test_a_bad_bias_is_refused_in_one_sentence(bias, error, message):
    with pytest.raises(error) as caught:
        layer_norm(torch.ones(3, 5), torch.ones(5), bias, eps=EPS)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "index, value, message",
    [
        (0, torch.zeros(3, 4), "bad y"),
        (1, torch.zeros(3, 5).double(), "bad sum"),
        (2, torch.zeros(5, 3).T, "bad x"),
        (3, torch.zeros(4), "bad weight"),
        (4, torch.zeros(6), "bad bias"),
        (6, torch.zeros(2, 5), "bad residual"),
    ],
)
def test_the_binding_guards_the_memory(index, value, message):
    rows, place = torch.zeros(3, 5), torch.zeros(5)
    arguments = [rows.clone(), rows.clone(), rows, place, place, EPS, rows]
    torch.ops.fastgen_native.layer_norm(*arguments)
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.layer_norm(*arguments)

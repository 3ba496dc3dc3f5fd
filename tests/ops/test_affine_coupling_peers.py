"""affine_coupling agrees with the couplings of nflows, normflows and zuko."""

import math

import pytest
import torch
from affine_coupling_inputs import largest, make
from torch import nn

from fastgen.ops import affine_coupling
from fastgen.tolerances import LIBRARY

# What users come from.


@pytest.mark.parametrize("dtype, limit", LIBRARY.items())
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("place", [(), (4, 3)])
def test_agrees_with_nflows_couplings(place, inverse, dtype, limit):
    transforms = pytest.importorskip("nflows.transforms")
    layer = transforms.AffineCouplingTransform([0, 0, 1, 1, 1], lambda i, o: Given())
    x, params = make((6, 5, *place), dtype, passed=2)
    layer.transform_net.params = params.requires_grad_()
    theirs = (layer.inverse if inverse else layer.forward)(x.requires_grad_())
    ours = affine_coupling(x, params, scale_map="sigmoid", min_scale=1e-3, passed=2, inverse=inverse)
    same_with_gradients(ours, theirs, (x, params), limit)


@pytest.mark.parametrize("dtype, limit", LIBRARY.items())
@pytest.mark.parametrize("inverse", [False, True])
def test_agrees_with_the_affine_map_of_nflows_autoregressive_transform(inverse, dtype, limit):
    transforms = pytest.importorskip("nflows.transforms")
    layer = transforms.MaskedAffineAutoregressiveTransform(9, 16)
    x, params = (t.requires_grad_() for t in make((6, 9), dtype))
    theirs = (layer._elementwise_inverse if inverse else layer._elementwise_forward)(x, params)
    run = {"scale_map": "softplus", "min_scale": 1e-3, "layout": "interleaved", "first": "scale"}
    same_with_gradients(affine_coupling(x, params, **run, inverse=inverse), theirs, (x, params), limit)


@pytest.mark.parametrize("dtype, limit", LIBRARY.items())
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    "theirs, ours", [("exp", "exp"), ("sigmoid", "reciprocal_sigmoid"), ("sigmoid_inv", "sigmoid")]
)
def test_agrees_with_normflows_couplings(theirs, ours, inverse, dtype, limit):
    coupling = pytest.importorskip("normflows.flows.affine.coupling")
    x, params = (t.requires_grad_() for t in make((6, 4, 3, 3), dtype))
    layer = coupling.AffineCoupling(Given(), scale_map=theirs)
    layer.param_map.params = params
    (_, y), log_det = (layer.inverse if inverse else layer.forward)([x, x])
    mine = affine_coupling(x, params, scale_map=ours, layout="interleaved", inverse=inverse)
    same_with_gradients(mine, (y, log_det), (x, params), limit)


@pytest.mark.parametrize("dtype, limit", LIBRARY.items())
@pytest.mark.parametrize("inverse", [False, True])
def test_agrees_with_normflows_masked_couplings(inverse, dtype, limit):
    coupling = pytest.importorskip("normflows.flows.affine.coupling")
    x, params = (t.requires_grad_() for t in make((6, 8), dtype))
    passes = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0], dtype=dtype)
    layer = coupling.MaskedAffineFlow(passes, Given(params[:, :8]), Given(params[:, 8:]))
    theirs = (layer.inverse if inverse else layer.forward)(x)
    ours = affine_coupling(x, params, scale_map="exp", mask=passes.bool(), inverse=inverse)
    same_with_gradients(ours, theirs, (x, params), limit)


@pytest.mark.parametrize("dtype, limit", LIBRARY.items())
@pytest.mark.parametrize("inverse", [False, True])
def test_agrees_with_zukos_affine_transform(inverse, dtype, limit):
    zuko = pytest.importorskip("zuko.transforms")
    x, params = (t.requires_grad_() for t in make((6, 8), dtype))
    affine = zuko.MonotonicAffineTransform(*params.unflatten(1, (8, 2)).unbind(-1), slope=1e-3)
    theirs = zuko.DependentTransform(affine, 1)
    run = {"scale_map": "softclip", "clamp": -math.log(1e-3), "layout": "interleaved", "inverse": inverse}
    wanted = (theirs.inv if inverse else theirs).call_and_ladj(x)
    same_with_gradients(affine_coupling(x, params, **run), wanted, (x, params), limit)


class Given(nn.Module):
    """A network that puts out what it was given."""

    def __init__(self, params=None):
        super().__init__()
        self.params = params

    def forward(self, x, context=None):
        return self.params


def same_with_gradients(ours, theirs, leaves, limit):
    grads = torch.cos(theirs[0].detach()), torch.ones_like(theirs[1])
    for a, b in zip(ours, theirs, strict=True):
        assert largest(a, b) < limit
    pairs = (torch.autograd.grad(outputs, leaves, grads) for outputs in (ours, theirs))
    for a, b in zip(*pairs, strict=True):
        assert largest(a, b) < limit

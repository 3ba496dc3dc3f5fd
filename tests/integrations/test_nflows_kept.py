"""fastgen.accelerate for nflows: what stays as it was, and why; other dtypes, caches and modules around."""

import flow_checks as checks
import pytest
import torch
from flow_checks import numbers
from nflows import distributions, flows, transforms
from small_nflows import AFFINE, FEATURES, MAF, SPLINE, Plain, flow_of, inverse, mask, resnet
from torch import nn

from fastgen import accelerate

pytestmark = pytest.mark.filterwarnings("ignore:Inputs to the softmax", "ignore:torch.triangular_solve")


class MyCoupling(AFFINE):
    def _scale_and_shift(self, params):
        scale, shift = super()._scale_and_shift(params)
        return 2 * scale, shift


def kept_reason(layer):
    """What the report says of a layer that has to stay, beside one that is replaced."""
    model = flows.Flow(
        transforms.CompositeTransform([layer, transforms.LULinear(FEATURES)]),
        distributions.StandardNormal([FEATURES]),
    )
    fast, report = accelerate(checks.stirred(model, torch.float32))
    x = numbers(8, FEATURES, dtype=torch.float32)
    torch.testing.assert_close(fast.log_prob(x), model.log_prob(x), rtol=1e-5, atol=1e-5)
    return {part.name.partition(": ")[2]: part.note for part in report.kept}


def test_what_is_kept_is_named_with_its_reason():
    def maf(**options):
        return MAF(FEATURES, 8, use_residual_blocks=True, **options)

    affine = "MaskedAffineAutoregressiveTransform.inverse"
    assert "activation" in kept_reason(maf(activation=torch.sin))[affine]
    assert "batch normalisation" in kept_reason(maf(use_batch_norm=True))[affine]
    cubic = transforms.PiecewiseCubicCouplingTransform(mask(0), Plain, num_bins=4, tails="linear")
    assert kept_reason(cubic)["PiecewiseCubicCouplingTransform"] == "fastgen has nothing for it"
    kept = kept_reason(MyCoupling(mask(0), Plain))
    assert kept["MyCoupling"] == "fastgen has nothing for it"
    assert "noise" in kept["StandardNormal"]
    own_map = AFFINE(mask(0), Plain)
    own_map.scale_activation = torch.exp
    assert "scale_activation" in kept_reason(own_map)["AffineCouplingTransform"]
    tight = SPLINE(mask(0), Plain, num_bins=4, tails="linear", min_bin_width=0.25)
    assert "smallest bins" in kept_reason(tight)["PiecewiseRationalQuadraticCouplingTransform"]


def test_a_flow_inside_a_module_of_ones_own_and_what_has_none():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow_of("MAF", False)

    fast, report = accelerate(Mine())
    assert type(fast) is Mine and report.replaced[0].name.startswith("flow._transform")
    _, second = accelerate(nn.ModuleList([fast, flow_of("NSF", False)]))
    assert "is accelerated already" in [part.note for part in second.kept]
    for nothing in (nn.Linear(2, 2), distributions.StandardNormal([2])):
        with pytest.raises(TypeError, match="fastgen knows nothing to replace"):
            accelerate(nothing)
    with pytest.raises(TypeError, match="which is accelerated already"):
        accelerate(fast)


def test_a_cache_with_a_history_does_not_stop_the_copy():
    plain = transforms.LULinear(FEATURES, using_cache=True).eval()
    x = numbers(4, FEATURES, dtype=torch.float32)
    wanted = plain(x)
    fast, _ = accelerate(plain)
    torch.testing.assert_close(fast(x), wanted)
    assert plain.cache.weight is not None


def test_dtypes_that_the_ops_do_not_take_run_as_before():
    plain = checks.stirred(flow_of("MAF", False), torch.float32)
    fast, _ = accelerate(plain)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = numbers(4, FEATURES, dtype=torch.float32)
        torch.testing.assert_close(fast.log_prob(x), plain.log_prob(x), rtol=0.05, atol=0.05)
        assert inverse(fast, x)[0].isfinite().all()


@pytest.mark.parametrize("kind", [transforms.LULinear, transforms.OneByOneConvolution])
def test_autocast_changes_neither_a_matrix_nor_what_is_kept_of_it(kind):
    plain = checks.stirred(kind(FEATURES), torch.float32)
    fast, _ = accelerate(plain)
    x = numbers(3, FEATURES, *((2, 2) if kind is not transforms.LULinear else ()), dtype=torch.float32)
    for run in ("forward", "inverse"):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            wanted, found = getattr(plain, run)(x), getattr(fast, run)(x)
        assert found[0].dtype == wanted[0].dtype
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
        with torch.no_grad():
            torch.testing.assert_close(getattr(fast, run)(x), getattr(plain, run)(x))


@pytest.mark.parametrize("layer", [
    transforms.AffineCouplingTransform(mask(0), resnet(None)),
    transforms.MaskedAffineAutoregressiveTransform(FEATURES, 8),
], ids=["coupling", "MAF"])  # fmt: skip
def test_float16_goes_through_float32(layer):
    plain = checks.stirred(layer, torch.float16).eval()
    fast, _ = accelerate(plain)
    x = numbers(4, FEATURES, dtype=torch.float16)
    with torch.no_grad():
        for run in ("forward", "inverse"):
            found, wanted = getattr(fast, run)(x), getattr(plain, run)(x)
            assert [t.dtype for t in found] == [torch.float16] * 2
            torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def test_a_network_of_ones_own_and_hooks_keep_the_inverse_of_nflows():
    layer = checks.stirred(transforms.MaskedAffineAutoregressiveTransform(FEATURES, 8), torch.float64)
    checks.check_own_networks_and_hooks(layer, FEATURES)


def test_what_inference_mode_kept_serves_gradients_later():
    fast, _ = accelerate(checks.stirred(transforms.LULinear(FEATURES), torch.float32).requires_grad_(False))
    x = numbers(3, FEATURES, dtype=torch.float32)
    for run in (fast.forward, fast.inverse):
        with torch.inference_mode():
            wanted, _ = run(x)
        leaf = x.clone().requires_grad_()
        found, _ = run(leaf)
        found.sum().backward()
        torch.testing.assert_close(found, wanted)
        assert leaf.grad.isfinite().all()

"""Every flow layer: the inverse undoes it, its log-determinant is autograd's, rows keep their bits."""

from functools import partial

import pytest
import torch

from fastgen import nn
from fastgen.backends import usable
from fastgen.nn.flow import FlowSequence, row_sum

MLP = partial(nn.MLP, hidden=(16,))
WITH_CONTEXT = partial(nn.MLP, hidden=(16,), context=3)
CONV = partial(nn.ConvNet, hidden=8)
RESIDUAL = partial(nn.ResidualMLP, hidden=9)

# name: (layer, shape of a row, features of the context)
LAYERS = {
    "actnorm": (lambda: nn.ActNorm(5), (5,), 0),
    "actnorm of images": (lambda: nn.ActNorm(3), (2, 4, 3), 0),
    "affine halves": (lambda: nn.AffineCoupling(5, MLP), (5,), 0),
    "affine mask": (lambda: nn.AffineCoupling(4, MLP, mask=[False, True, False, True]), (4,), 0),
    "affine exp": (lambda: nn.AffineCoupling(4, MLP, scale_map="exp"), (4,), 0),
    "affine sigmoid": (lambda: nn.AffineCoupling(4, MLP, scale_map="sigmoid"), (4,), 0),
    "affine context": (lambda: nn.AffineCoupling(5, WITH_CONTEXT), (5,), 3),
    "affine images": (lambda: nn.AffineCoupling(5, CONV), (2, 3, 5), 0),
    "affine images context": (lambda: nn.AffineCoupling(4, partial(CONV, context=2)), (2, 2, 4), 2),
    "spline": (lambda: nn.SplineCoupling(5, MLP), (5,), 0),
    "spline mask": (lambda: nn.SplineCoupling(4, MLP, mask=[True, False, False, True]), (4,), 0),
    "spline residual": (lambda: nn.SplineCoupling(4, RESIDUAL), (4,), 0),
    "spline gelu": (lambda: nn.SplineCoupling(4, partial(RESIDUAL, activation="gelu")), (4,), 0),
    "spline context": (lambda: nn.SplineCoupling(5, WITH_CONTEXT, bins=4), (5,), 3),
    "spline images": (lambda: nn.SplineCoupling(2, CONV, bins=4), (2, 4, 2), 0),
    "conditional normal": (lambda: nn.ConditionalNormal(4, 3), (4,), 3),
    "permutation": (lambda: nn.Permutation("random", 6, seed=2), (6,), 0),
    "squeeze": (nn.Squeeze, (4, 2, 3), 0),
    "channels last": (lambda: nn.ChannelsLast((2, 3, 4)), (24,), 0),
    "flatten": (lambda: nn.Flatten((2, 3)), (2, 3), 0),
    "split": (
        lambda: nn.Split(FlowSequence([nn.ActNorm(2), nn.Flatten((2, 2, 2))]), (2, 2, 3)),
        (2, 2, 3), 0,
    ),
    "split learned": (
        lambda: nn.Split(nn.Flatten((2, 4, 2)), (2, 4, 4), nn.AffineCoupling(4, partial(CONV, hidden=0))),
        (2, 4, 4), 0,
    ),
    "sequence": (
        lambda: FlowSequence([nn.ActNorm(4), nn.Permutation("reverse", 4), nn.AffineCoupling(4, MLP)]),
        (4,), 0,
    ),
}  # fmt: skip


def randomised(layer, seed=0):
    """The layer in float64 with parameters that are not what it starts with, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer.eval()


def made(name, rows=6):
    make, shape, context = LAYERS[name]
    torch.manual_seed(1)
    layer = randomised(make())
    x = torch.randn(rows, *shape, dtype=torch.float64)
    return layer, x, torch.randn(rows, context, dtype=torch.float64) if context else None


@pytest.mark.parametrize("name", LAYERS)
def test_the_inverse_undoes_it_in_both_directions(name):
    layer, x, context = made(name)
    z, log_det = layer(x, context)
    back, back_log_det = layer.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back_log_det, -log_det, rtol=1e-9, atol=1e-9)
    assert log_det.shape == (len(x),)


@pytest.mark.parametrize("name", LAYERS)
def test_the_log_determinant_is_that_of_autograds_jacobian(name):
    layer, x, context = made(name, rows=3)
    for direction in (layer.forward, layer.inverse):
        given = x if direction == layer.forward else layer(x, context)[0].detach()
        _, log_det = direction(given, context)
        for i, row in enumerate(given):
            own = None if context is None else context[i : i + 1]

            def flat(r, own=own, shape=row.shape, direction=direction):
                return direction(r.view(1, *shape), own)[0].flatten()

            jacobian = torch.autograd.functional.jacobian(flat, row.flatten())
            torch.testing.assert_close(jacobian.slogdet()[1], log_det[i], rtol=1e-8, atol=1e-8)


@pytest.mark.skipif(not usable("linear", "native", "cpu"), reason="the reference adds in torch's order")
@pytest.mark.parametrize("name", LAYERS)
def test_a_row_has_the_same_bits_alone_and_with_one_thread_or_two(name):
    layer, x, context = made(name, rows=257)
    for dtype in (torch.float32, torch.float64):
        layer.to(dtype)
        x, context = x.to(dtype), None if context is None else context.to(dtype)
        for direction in (layer.forward, layer.inverse):
            given = x if direction == layer.forward else layer(x, context)[0].detach()
            with torch.no_grad():
                whole = direction(given, context)
                for rows in (slice(0, 1), slice(256, 257), slice(100, 117)):
                    part = direction(given[rows], None if context is None else context[rows])
                    assert all(torch.equal(p, w[rows]) for p, w in zip(part, whole, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_agree_with_finite_differences(name):
    layer, x, context = made(name, rows=2)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    for direction in (layer.forward, layer.inverse):
        given = (x if direction == layer.forward else layer(x, context)[0]).detach().requires_grad_()
        assert torch.autograd.gradcheck(lambda g: direction(g, context), (given,), fast_mode=True)  # noqa: B023


def test_couplings_start_at_the_identity():
    x = torch.randn(5, 6).clamp(-2.9, 2.9)
    for layer in (nn.AffineCoupling(6, MLP), nn.SplineCoupling(6, partial(nn.ResidualMLP, hidden=8))):
        z, log_det = layer(x)
        torch.testing.assert_close(z, x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(log_det, torch.zeros(5), rtol=1e-4, atol=1e-4)


def test_a_coupling_leaves_what_its_mask_says():
    layer, x, _ = made("affine mask")
    z, _ = layer(x)
    assert torch.equal(z[:, [1, 3]], x[:, [1, 3]])
    assert bool((z[:, [0, 2]] != x[:, [0, 2]]).all())


def test_actnorm_takes_mean_and_scale_from_the_first_training_batch_alone():
    x = 3 * torch.randn(64, 2, 2, 5) + torch.arange(5.0)
    x[..., 4] = 7.0
    layer = nn.ActNorm(5)
    torch.testing.assert_close(layer.eval()(x)[0], x)
    assert not layer.initialised
    z, log_det = layer.train()(x)
    torch.testing.assert_close(z.mean((0, 1, 2)), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std((0, 1, 2), correction=0)[:4], torch.ones(4), rtol=1e-5, atol=1e-5)
    assert bool((z[..., 4] == 0).all()) and bool(torch.isfinite(log_det).all())
    kept = layer.shift.detach().clone()
    layer(x + 100)
    assert torch.equal(layer.shift, kept)


def test_actnorm_is_not_initialised_again_after_loading():
    first, second = nn.ActNorm(3), nn.ActNorm(3)
    first.train()(torch.randn(16, 3) + 5)
    second.load_state_dict(first.state_dict())
    second.train()(torch.randn(16, 3) - 5)
    assert torch.equal(first.shift, second.shift)


def test_conv_net_is_torchs_convolutions():
    torch.manual_seed(0)
    net = randomised(nn.ConvNet(3, 4, hidden=7))
    x = torch.randn(2, 5, 6, 3, dtype=torch.float64)
    first, middle = net.hidden
    h = x.permute(0, 3, 1, 2)
    kernel = first.weight.view(7, 3, 3, 3).permute(0, 3, 1, 2)
    h = torch.nn.functional.conv2d(h, kernel, first.bias, padding=1).relu()
    h = torch.nn.functional.conv2d(h, middle.weight[:, :, None, None], middle.bias).relu()
    kernel = net.last.weight.view(3, 3, 4, 7).permute(2, 3, 0, 1)
    wanted = torch.nn.functional.conv2d(h, kernel, net.bias, padding=1)
    torch.testing.assert_close(net(x).permute(0, 3, 1, 2), wanted)


def test_squeeze_brings_neighbours_together():
    x = torch.arange(16.0).view(1, 4, 4, 1)
    z, _ = nn.Squeeze()(x)
    assert z[0, 0, 1].tolist() == [2, 3, 6, 7]


def test_dropout_of_a_residual_network_is_in_training_alone():
    net = randomised(nn.ResidualMLP(4, 3, hidden=32, dropout=0.5))
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


@pytest.mark.parametrize("columns", [3, 40_000])
def test_sums_of_a_single_row_are_those_it_has_in_a_batch(columns):
    x = torch.randn(3, columns)
    assert torch.equal(row_sum(x[:1]), row_sum(x)[:1])


def test_grey_values_survive_the_way_there_and_back():
    for levels in (2, 17, 32, 256):
        layer = nn.Dequantization(levels)
        grey = (torch.arange(levels) * 255 / (levels - 1)).round().to(torch.uint8)[:, None]
        for noise in (0.0, 0.5, 1 - 2**-15):
            y = layer.place(grey, torch.full(grey.shape, noise))
            assert torch.equal(layer.quantize(y), grey)
        y, log_det = layer(grey)
        assert bool(((y >= 0) & (y <= 1)).all()) and torch.equal(layer.quantize(y), grey)
        torch.testing.assert_close(log_det, -torch.full((levels,), float(levels)).log())


def test_noise_of_an_image_belongs_to_its_id():
    layer = nn.Dequantization(256)
    assert torch.equal(layer.noise(3, torch.arange(9), 5)[7:8], layer.noise(3, torch.tensor([7]), 5))


def test_logit_and_its_inverse():
    layer, x = nn.Logit(0.05), torch.rand(4, 7, dtype=torch.float64)
    z, log_det = layer(x)
    back, back_log_det = layer.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det, -back_log_det)
    slope = 0.9 / ((0.05 + 0.9 * x) * (0.95 - 0.9 * x))
    torch.testing.assert_close(log_det, slope.log().sum(1))
    assert bool(torch.isfinite(layer(torch.tensor([[0.0, 1.0]]))[0]).all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Squeeze()(torch.zeros(2, 3, 4, 1)), r"shape \(2, 3, 4, 1\), wanted .* even H and W"),
        (lambda: nn.Squeeze().inverse(torch.zeros(2, 3, 4, 1)), "C a multiple of 4"),
        (lambda: nn.AffineCoupling(3, MLP, mask=[True, False]), "mask is .*, wanted 3 bools"),
        (lambda: nn.SplineCoupling(2, MLP, mask=[True, True]), "at least one True and one False"),
        (lambda: nn.Permutation([0, 0, 1]), "order is .*, wanted 'reverse', 'random' or a permutation"),
        (lambda: nn.Permutation("random"), "features is None"),
        (lambda: nn.Dequantization(1), "levels is 1, wanted an int from 2 to 256"),
        (lambda: nn.Dequantization(4)(torch.tensor([[300]])), "x ranges from 300 to 300"),
        (lambda: nn.Logit(0.5), "alpha is 0.5"),
        (
            lambda: nn.Logit()(torch.tensor([[0.5, 1.2]])),
            "x ranges from 0.5 to 1.2.*, wanted real numbers from",
        ),
        (lambda: nn.Logit()(torch.tensor([[-0.1, 0.5]])), "x ranges from -0.1.* to 0.5, wanted real numbers"),
    ],
)
def test_bad_input_is_explained(make, words):
    with pytest.raises(ValueError, match=words):
        make()


WIDTHS = {
    "actnorm": (lambda: nn.ActNorm(3), r"\(N, ..., 3\)", r"\(N, ..., 3\)"),
    "affine": (lambda: nn.AffineCoupling(3, MLP), r"\(N, ..., 3\)", r"\(N, ..., 3\)"),
    "affine mask": (
        lambda: nn.AffineCoupling(3, MLP, mask=[False, True, False]), r"\(N, ..., 3\)", r"\(N, ..., 3\)",
    ),
    "spline": (lambda: nn.SplineCoupling(3, MLP), r"\(N, ..., 3\)", r"\(N, ..., 3\)"),
    "permutation": (lambda: nn.Permutation("reverse", 3), r"\(N, ..., 3\)", r"\(N, ..., 3\)"),
    "split": (lambda: nn.Split(nn.Flatten((2, 2)), (2, 3)), r"\(N, 2, 3\)", r"\(N, 6\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("shape", [(4, 2), (4, 5), (4, 2, 4), (3,)])
def test_a_wrong_width_is_refused_in_both_directions(name, shape):
    make, of_x, of_z = WIDTHS[name]
    layer, given = make(), torch.zeros(shape)
    came = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"x has shape {came}, wanted {of_x}"):
        layer(given)
    with pytest.raises(ValueError, match=f"z has shape {came}, wanted {of_z}"):
        layer.inverse(given)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_actnorm_does_not_start_from_numbers_that_are_not_finite(bad):
    norm, x = nn.ActNorm(3).train(), torch.randn(8, 3)
    x[2, 1] = bad
    with pytest.raises(ValueError, match="x has 1 NaN or infinite numbers of 24, wanted a first batch of"):
        norm(x)
    assert not norm.initialised and bool((norm.shift == 0).all()) and bool((norm.log_scale == 0).all())
    norm(x[3:])
    assert norm.initialised
    z, _ = norm(x)  # later it stays in its place
    assert not z[2, 1].isfinite() and int((~z.isfinite()).sum()) == 1


def test_actnorm_does_not_start_from_an_empty_batch():
    norm = nn.ActNorm(3).train()
    norm(torch.zeros(0, 3))
    assert not norm.initialised
    torch.testing.assert_close(norm.shift, torch.zeros(3))

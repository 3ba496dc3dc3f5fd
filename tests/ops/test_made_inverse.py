"""The op made_inverse: against the inverses of flow libraries, its bits, its gradients, what it refuses."""

import pytest
import torch
from made_inverse_inputs import FORMATS, ISAS, TRANSFORMS, assert_native_is_the_reference, make, on

from fastgen import native, use_backend
from fastgen.ops import Affine, Spline, made_inverse
from fastgen.ops.made_inverse import arguments
from fastgen.reference.linear import ACTIVATIONS
from fastgen.testing import fenced, with_threads

# Against the reference.


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_every_transform(transform, isa):
    with native.instruction_set(isa):
        assert_native_is_the_reference(*make(transform=transform, rows=19))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("wired", ["residual", "plain"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_activation(activation, wired, isa):
    with native.instruction_set(isa):
        assert_native_is_the_reference(*make(activation=activation, wired=wired))


@pytest.mark.parametrize("dtype, weights", FORMATS)
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("degrees", [None, "random"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_format_context_and_order(dtype, weights, context, degrees, isa):
    given = make(dtype=dtype, weights=weights, context=context, degrees=degrees, rows=40)
    with native.instruction_set(isa):
        assert_native_is_the_reference(*given, rtol={8: 1e-10, 4: 1e-4, 2: 2e-2}[dtype.itemsize])


@pytest.mark.parametrize(
    "features, hidden", [(1, (5,)), (1, ()), (3, ()), (17, (3, 3, 3)), (9, (1,)), (33, (100,))]
)
@pytest.mark.parametrize("rows", [0, 1, 17])
@pytest.mark.parametrize("transform", [Affine(), Spline(4)], ids=str)
def test_every_size(features, hidden, rows, transform):
    given, keywords = make(features, hidden, transform, rows=rows, wired="plain")
    assert_native_is_the_reference(given, keywords)
    assert on("native", given, keywords)[1].shape == (rows,)


def test_features_of_one_degree_are_found_together():
    (z, made, transform), _ = make(8, (20, 20, 20))
    halves = made._replace(degrees=[torch.arange(8) // 4, *[torch.arange(20) % 3 - 1] * 3])
    assert_native_is_the_reference((z, halves, transform), {})


@pytest.mark.parametrize("transform", [Affine("exp"), Spline(6)], ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_log_det_is_that_of_the_jacobian(transform, backend):
    (z, made, _), keywords = make(transform=transform, context=True)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: on_reference(x, made, transform, keywords), z, vectorize=False
    )
    rows = range(len(z))
    wanted = torch.linalg.slogdet(jacobian[rows, :, rows]).logabsdet
    torch.testing.assert_close(on(backend, (z, made, transform), keywords)[1], wanted)


def on_reference(z, made, transform, keywords):
    with use_backend("reference"):
        return made_inverse(z, made, transform, **keywords)[0]


def test_a_later_input_changes_no_bit_of_earlier_outputs():
    for degrees in (None, "random"):
        (z, made, transform), _ = make(12, (30, 30, 30), degrees=degrees, dtype=torch.float32)
        before = on("native", (z, made, transform), {})[0]
        for d in range(12):
            changed = z.clone()
            changed[:, d] += 1
            after = on("native", (changed, made, transform), {})[0]
            same = made.degrees[0] < made.degrees[0][d]
            assert torch.equal(before[:, same], after[:, same])
            assert bool((before[:, d] != after[:, d]).all())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transform", [Affine(), Spline(5)], ids=str)
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads(isa, dtype, transform):
    (z, made, _), keywords = make(transform=transform, rows=150, dtype=dtype, context=True)

    def rows(first, last, threads):
        part = {
            name: [None if t is None else t[first:last] for t in terms] for name, terms in keywords.items()
        }
        with with_threads(threads):
            return on("native", (z[first:last], made, transform), part)

    with native.instruction_set(isa):
        whole = rows(0, 150, 1)
        for first, last, threads in ((0, 150, 2), (0, 1, 1), (37, 38, 2), (20, 61, 2), (3, 150, 1)):
            for came, wanted in zip(rows(first, last, threads), whole, strict=True):
                assert torch.equal(came, wanted[first:last])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_is_not_finite_in_one_row_leaves_the_others_alone(bad, backend):
    (z, made, transform), _ = make(rows=20)
    wanted = on(backend, (z, made, transform), {})
    worse = z.clone()
    worse[4, 2] = bad
    came = on(backend, (worse, made, transform), {})
    others = torch.arange(20) != 4
    assert all(torch.equal(a[others], b[others]) for a, b in zip(came, wanted, strict=True))
    assert torch.equal(came[0][4, :2], wanted[0][4, :2]) and not came[0][4, 2].isfinite()


def test_masked_weights_are_never_read():
    (z, made, transform), _ = make()
    degrees = [*made.degrees, made.degrees[0].repeat_interleave(2)]
    spoiled = []
    for k, weight in enumerate(made.weights):
        below, above = degrees[k], degrees[k + 1][:, None]
        kept = above > below if k + 1 == len(made.weights) else above >= below
        spoiled.append(torch.where(kept, weight, float("nan")))
    wanted = on("native", (z, made, transform), {})
    for backend in ("native", "reference"):
        came = on(backend, (z, made._replace(weights=spoiled), transform), {})
        torch.testing.assert_close(came, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("isa", ISAS)
def test_native_writes_where_it_should_and_nowhere_else(isa):
    for transform in (Affine(), Spline(3)):
        given, keywords = make(transform=transform, rows=21, context=True, dtype=torch.float32)
        flat = arguments(*given, **keywords)
        *net, activation, kind, _, bins, tails, numbers = flat[1:]
        place = 1 if kind == "affine" else 0  # tanh, softmax
        activated = list(ACTIVATIONS).index(activation)
        with (
            native.instruction_set(isa),
            fenced((21, 6), torch.float32) as x,
            fenced((21,), torch.float32) as log_det,
        ):
            torch.ops.fastgen_native.made_inverse(
                x, log_det, flat[0], *net, activated, place, bins, tails, numbers
            )
            wanted = on("reference", given, keywords)
            torch.testing.assert_close((x, log_det), wanted, rtol=1e-4, atol=1e-4)


# Gradients.


@pytest.mark.parametrize("transform", [Affine("exp"), Affine("softplus"), Spline(4)], ids=str)
@pytest.mark.parametrize("degrees", [None, "random"])
def test_gradients_are_those_through_all_passes(transform, degrees):
    (z, made, _), keywords = make(transform=transform, degrees=degrees, context=True)
    terms = [t for name in ("addends", "gates") for t in keywords[name] if t is not None]
    leaves = [t.requires_grad_() for t in (z, *made.weights, *made.biases, *terms)]
    g = torch.Generator().manual_seed(9)
    grads = torch.randn(7, 6, generator=g, dtype=z.dtype), torch.randn(7, generator=g, dtype=z.dtype)

    def gradients(create_graph):
        outputs = made_inverse(z, made, transform, **keywords)
        return torch.autograd.grad(outputs, leaves, grads, create_graph=create_graph)

    torch.testing.assert_close(gradients(False), gradients(True), rtol=1e-8, atol=1e-8)


def test_gradients_keep_the_dtypes():
    for dtype, weights in FORMATS:
        (z, made, transform), _ = make(dtype=dtype, weights=weights)
        leaves = [t.requires_grad_() for t in (z, *made.weights, *made.biases)]
        x, log_det = made_inverse(z, made, transform)
        (x.sum() + log_det.sum()).backward()
        assert all(leaf.grad.dtype == leaf.dtype and leaf.grad.isfinite().all() for leaf in leaves)


# What it refuses.


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"activation": "sine"}, ValueError, "activation is 'sine', wanted one of none, relu"),
        ({"weights": []}, ValueError, "weights is empty"),
        ({"biases": []}, ValueError, "biases has 0 entries, wanted 4 as weights"),
        ({"activated": [True] * 4}, ValueError, r"activated\[0\] is True, wanted False: the first layer"),
        ({"residual": [False, True, False, False]}, ValueError, r"residual\[1\] is True"),
        ({"residual": [False, False, False, True]}, ValueError, r"residual\[3\] is True"),
        ({"degrees": [torch.zeros(6)] * 4}, TypeError, r"degrees\[0\] is torch.float32, wanted integers"),
        ({"degrees": [torch.arange(5)] * 4}, ValueError, r"degrees\[0\] has shape \(5,\)"),
        (
            {"degrees": [torch.arange(6), torch.arange(13), torch.arange(13), torch.zeros(13).long()]},
            ValueError,
            r"degrees\[3\] has units of lower degree than degrees\[1\]",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused(change, error, message):
    (z, made, transform), _ = make()
    with pytest.raises(error, match=message):
        made_inverse(z, made._replace(**change), transform)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda z, m, t: (z.float(), m, t),
            TypeError,
            "z is torch.float32, wanted torch.float64 for weights",
        ),
        (lambda z, m, t: (z[:, :4], m, t), ValueError, r"z has shape \(7, 4\), wanted \(N, 6\)"),
        (lambda z, m, t: (z.tolist(), m, t), TypeError, "z is list"),
        (lambda z, m, t: (z, list(m), t), TypeError, "network is list, wanted a MaskedNetwork"),
        (lambda z, m, t: (z, m, "affine"), TypeError, "transform is str, wanted Affine"),
        (lambda z, m, t: (z, m, Spline(8)), ValueError, "has 12 outputs, wanted 23 for each of 6"),
        (lambda z, m, t: (z, m, Affine("square")), ValueError, "scale_map is 'square', wanted one of exp"),
        (
            lambda z, m, t: (z, m, Affine("tanh", clamp=0.0)),
            ValueError,
            "clamp is 0.0, wanted a number > 0",
        ),
        (lambda z, m, t: (z, m, Affine("exp", min_scale=1.0)), ValueError, "min_scale is 1.0, wanted 0 with"),
        (lambda z, m, t: (z, m, Spline(0)), ValueError, "bins is 0, wanted an integer >= 1"),
        (lambda z, m, t: (z, m, Spline(8, tails="far")), ValueError, "tails is 'far'"),
        (lambda z, m, t: (z, m, Spline(8, bound=float("inf"))), ValueError, "bound is inf"),
        (lambda z, m, t: (z, m, Spline(8, min_width=0.2)), ValueError, "min_width is 0.2"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, error, message):
    given, _ = make()
    with pytest.raises(error, match=message):
        made_inverse(*call(*given))


def test_bad_terms_and_places_outside_of_the_box_are_refused():
    (z, made, transform), _ = make()
    with pytest.raises(ValueError, match="addends has 1 entries, wanted 4, one for each layer"):
        made_inverse(z, made, transform, addends=[None])
    with pytest.raises(ValueError, match=r"gates\[0\] has shape \(2, 13\), wanted \(7, 13\)"):
        made_inverse(z, made, transform, gates=[z.new_ones(2, 13), None, None, None])
    given, _ = make(transform=Spline(3, tails=None, bound=9.0))
    assert_native_is_the_reference(given, {})
    with pytest.raises(ValueError, match=r"z holds 9\.5, wanted numbers from -9\.0 to 9\.0, since tails"):
        made_inverse(torch.full_like(given[0], 9.5), *given[1:])

"""The op made_inverse: against the inverses of flow libraries, its bits, its gradients, what it refuses."""

import pytest
import torch
from nflows.transforms import autoregressive as nflows_flows
from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive
from zuko.flows import MaskedAutoregressiveTransform

from fastgen import native, use_backend
from fastgen.bench.cases.made_inverse import network
from fastgen.ops import Affine, MaskedNetwork, Spline, made_inverse
from fastgen.ops.made_inverse import arguments
from fastgen.reference.linear import ACTIVATIONS
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import LIBRARY

ISAS = native.usable_isas()
FORMATS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float64, torch.float64),
]
TRANSFORMS = [
    *(Affine(name) for name in ("exp", "tanh", "atan", "softclip", "reciprocal_sigmoid")),
    *(Affine(name, min_scale=1e-3) for name in ("sigmoid", "softplus")),
    Affine("softplus"),
    Spline(8),
    Spline(1),
    Spline(3, tails="circular", scale=0.5),
    Spline(5, parametrization="softclip"),
]


def make(
    features=6,
    hidden=(13, 13, 13),
    transform=Affine(),  # noqa: B008  a tuple
    *,
    rows=7,
    dtype=torch.float64,
    weights=None,
    wired="residual",
    activation="tanh",
    degrees=None,
    context=False,
    seed=0,
):
    """z, network, transform and keywords; `degrees` draws those of the hidden units and the order."""
    g = torch.Generator().manual_seed(seed)
    made = network(features, hidden, transform.parameters, wired=wired, activation=activation)
    if degrees is not None:
        order = torch.randperm(features, generator=g)
        same = torch.randint(-1, features, (hidden[0],), generator=g)
        drawn = [
            same if wired == "residual" else torch.randint(-1, features, (n,), generator=g) for n in hidden
        ]
        made = made._replace(degrees=[order, *drawn])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    made = made._replace(
        weights=[w.to(weights or dtype) for w in made.weights], biases=[b.to(wide) for b in made.biases]
    )
    z = torch.randn(rows, features, generator=g, dtype=torch.float64).to(dtype)
    keywords = {}
    if context:
        units = made.units[1:]
        terms = [0.3 * torch.randn(rows, n, generator=g, dtype=torch.float64).to(wide) for n in units]
        gates = [torch.rand(rows, n, generator=g, dtype=torch.float64).to(wide) + 0.5 for n in units]
        keywords = {
            "addends": [terms[0], None, terms[2], terms[3]],
            "gates": [None, gates[1], gates[2], None],
        }
    return (z, made, transform), keywords


def on(backend, given, keywords):
    with use_backend(backend), torch.no_grad():
        return made_inverse(*given, **keywords)


def assert_native_is_the_reference(given, keywords, rtol=1e-10):
    for came, wanted in zip(on("native", given, keywords), on("reference", given, keywords), strict=True):
        assert came.dtype == wanted.dtype
        torch.testing.assert_close(came, wanted, rtol=rtol, atol=rtol)


# Against those who run the network once for each feature.


def copy_of(linears):
    weights = [module.weight.detach() for module in linears]
    return weights, [module.bias.detach() for module in linears]


def from_blocks(made, activation):
    """The network of nflows and normflows with residual blocks."""
    inner = [linear for block in made.blocks for linear in block.linear_layers]
    linears = [made.initial_layer, *inner, made.final_layer]
    weights, biases = copy_of(linears)
    count = len(linears)
    second = [0 < k < count - 1 and k % 2 == 0 for k in range(count)]
    degrees = [torch.arange(weights[0].shape[1]) + 1, *(module.degrees for module in linears[:-1])]
    return MaskedNetwork(
        weights, biases, degrees, activation, [0 < k < count - 1 for k in range(count)], second
    )


def randomised(module, dtype):
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.to(dtype).eval()


PRECISIONS = LIBRARY.items()


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("features, hidden", [(1, 4), (5, 3), (9, 40)])
def test_it_is_the_inverse_of_nflows(dtype, tolerance, features, hidden):
    layer = randomised(nflows_flows.MaskedAffineAutoregressiveTransform(features, hidden), dtype)
    z = torch.randn(20, features, generator=torch.Generator().manual_seed(1)).to(dtype)
    given = z, from_blocks(layer.autoregressive_net, "relu"), Affine("softplus", min_scale=1e-3)
    torch.testing.assert_close(on("native", given, {}), layer.inverse(z), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_it_is_the_inverse_of_nflows_with_random_masks(dtype, tolerance):
    layer = randomised(
        nflows_flows.MaskedAffineAutoregressiveTransform(7, 30, use_residual_blocks=False, random_mask=True),
        dtype,
    )
    made = layer.autoregressive_net
    linears = [made.initial_layer, *(block.linear for block in made.blocks), made.final_layer]
    weights, biases = copy_of(linears)
    degrees = [torch.arange(7) + 1, *(module.degrees for module in linears[:-1])]
    activated = [k > 0 for k in range(len(linears))]
    net = MaskedNetwork(weights, biases, degrees, "relu", activated, [False] * len(linears))
    z = torch.randn(20, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    given = z, net, Affine("softplus", min_scale=1e-3)
    torch.testing.assert_close(on("native", given, {}), layer.inverse(z), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_it_is_the_inverse_of_normflows_with_its_gates_by_context(dtype, tolerance):
    layer = randomised(MaskedAffineAutoregressive(6, 25, context_features=3), dtype)
    made = layer.autoregressive_net
    g = torch.Generator().manual_seed(1)
    z, context = torch.randn(20, 6, generator=g).to(dtype), torch.randn(20, 3, generator=g).to(dtype)
    with torch.no_grad():
        gates = [torch.sigmoid(block.context_layer(context)) for block in made.blocks]
        addends = [made.context_layer(context), *[None] * 5]
        wanted = layer.inverse(z, context)
    given = z, from_blocks(made, "relu"), Affine("sigmoid", min_scale=1e-3)
    keywords = {"addends": addends, "gates": [None, None, gates[0], None, gates[1], None]}
    torch.testing.assert_close(on("native", given, keywords), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("order", [None, [3, 0, 4, 2, 1], [0, 0, 1, 1, 1]])
def test_it_is_the_inverse_of_zuko_in_any_order(dtype, tolerance, order):
    passes = None if order is None or len(set(order)) == 5 else 5
    layer = MaskedAutoregressiveTransform(5, hidden_features=(12, 17), order=order, passes=passes)
    layer = randomised(layer, dtype)
    linears = [module for module in layer.hyper if isinstance(module, torch.nn.Linear)]
    weights, biases = copy_of(linears)
    places = layer.order
    reach = [places]
    for linear in linears[:-1]:
        reach.append(torch.where(linear.mask, reach[-1], -1).amax(1))
    swap = torch.arange(10).view(5, 2).flip(1).flatten()
    net = MaskedNetwork(
        [*weights[:-1], weights[-1][swap]], [*biases[:-1], biases[-1][swap]], reach, "relu",
        [False, True, True], [False] * 3,
    )  # fmt: skip
    z = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    flow = layer()
    x = flow.inv(z)
    given = z, net, Affine("softclip", clamp=6.907755278982137)
    wanted = x, -flow.log_abs_det_jacobian(x, z)
    torch.testing.assert_close(on("native", given, {}), wanted, rtol=tolerance, atol=tolerance)


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

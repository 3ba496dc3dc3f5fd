"""What the tests of made_inverse share: inputs, and both implementations side by side."""

import torch

from fastgen import native, use_backend
from fastgen.bench.cases.made_inverse import network
from fastgen.ops import Affine, Spline, made_inverse

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

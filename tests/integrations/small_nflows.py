"""Small flows of nflows, of every kind that users build, which its tests share."""

import torch
from nflows import distributions, flows, transforms
from nflows.nn import nets
from torch import nn

DTYPES = [torch.float32, torch.float64]
FEATURES, CONTEXT = 5, 3


def mask(k):
    return torch.arange(FEATURES) % 2 * 2 - 1 if k % 2 else 1 - torch.arange(FEATURES) % 2 * 2


def resnet(context):
    return lambda inputs, outputs: nets.ResidualNet(inputs, outputs, 8, context, num_blocks=1)


class Plain(nn.Sequential):
    """A network without hidden_features: nflows then divides nothing. Its last layer keeps its output."""

    def __init__(self, inputs, outputs):
        super().__init__(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))

    def forward(self, x, context=None):
        return super().forward(x)


def couplings(kind, context, create=None, **options):
    create = create or resnet(context)
    return [kind(mask(k), create, **options) for k in range(2)]


def autoregressive(kind, context, **options):
    options = {"hidden_features": 11, "num_blocks": 2, **options}
    layers = [transforms.RandomPermutation(FEATURES), transforms.ReversePermutation(FEATURES)]
    for k in (0, 2):
        layers.insert(k, kind(features=FEATURES, context_features=context, **options))
    return layers


AFFINE = transforms.AffineCouplingTransform
SPLINE = transforms.PiecewiseRationalQuadraticCouplingTransform
MAF = transforms.MaskedAffineAutoregressiveTransform
NSF = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
BOX = [transforms.Sigmoid()], [transforms.Logit()]

# name: layers for a context of so many features, or None; these take inputs (N, FEATURES)
LAYERS = {
    "affine coupling": lambda c: couplings(AFFINE, c),
    "additive coupling": lambda c: couplings(transforms.AdditiveCouplingTransform, c),
    "LU": lambda c: [
        transforms.LULinear(FEATURES, identity_init=False),
        *couplings(AFFINE, c, Plain)[:1],
        transforms.LULinear(FEATURES),
        transforms.BatchNorm(FEATURES),
        transforms.ActNorm(FEATURES),
    ],
    "spline coupling": lambda c: couplings(SPLINE, c, num_bins=4, tails="linear", tail_bound=2.0),
    "spline coupling, no hidden_features": lambda c: couplings(
        SPLINE, c, Plain, num_bins=3, tails="linear", min_bin_width=0.01, min_derivative=0.1
    ),
    "spline coupling, unconditional": lambda c: couplings(
        SPLINE, c, num_bins=3, tails="linear", tail_bound=1.5, apply_unconditional_transform=True
    ),
    "spline coupling, box": lambda c: BOX[0] + couplings(SPLINE, c, num_bins=5) + BOX[1],
    "spline of one CDF": lambda c: [transforms.PiecewiseRationalQuadraticCDF([FEATURES], 4, "linear", 2.0)],
    "MAF": lambda c: autoregressive(MAF, c),
    "MAF, feedforward": lambda c: autoregressive(MAF, c, use_residual_blocks=False, activation=torch.tanh),
    "MAF, random masks": lambda c: autoregressive(MAF, c, use_residual_blocks=False, random_mask=True),
    "MAF, few units": lambda c: autoregressive(MAF, c, hidden_features=2, activation=nn.ELU()),
    "MAF, inverse": lambda c: [transforms.InverseTransform(autoregressive(MAF, c)[0])],
    "MAF, dropout": lambda c: autoregressive(MAF, c, dropout_probability=0.5),
    "NSF": lambda c: autoregressive(NSF, c, num_bins=4, tails="linear", tail_bound=2.0),
    "NSF, box": lambda c: BOX[0] + autoregressive(NSF, c, num_bins=3)[:1] + BOX[1],
}


def flow_of(name, context):
    torch.manual_seed(3)
    base = distributions.StandardNormal([FEATURES])
    if context:
        base = distributions.ConditionalDiagonalNormal([FEATURES], nn.Linear(CONTEXT, 2 * FEATURES))
    layers = LAYERS[name](CONTEXT if context else None)
    embedding = nn.Linear(CONTEXT, CONTEXT) if context else None
    return flows.Flow(transforms.CompositeTransform(layers), base, embedding)


def log_prob(flow, x, *context):
    return (flow.log_prob(x, *context),)


def inverse(flow, z, *context):
    return flow._transform.inverse(z, *[flow._embedding_net(c) for c in context])


def sample(flow, *context):
    torch.manual_seed(11)
    return flow.sample_and_log_prob(6, *context)

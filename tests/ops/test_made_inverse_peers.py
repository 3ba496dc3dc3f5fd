"""made_inverse is the inverse of those who run the network once for each feature: nflows, normflows, zuko."""

import pytest
import torch
from made_inverse_inputs import on
from nflows.transforms import autoregressive as nflows_flows
from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive
from zuko.flows import MaskedAutoregressiveTransform

from fastgen.ops import Affine, MaskedNetwork
from fastgen.tolerances import LIBRARY

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

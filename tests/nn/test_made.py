"""MADE and the layer that it conditions."""

import pytest
import torch

from fastgen import nn
from fastgen.ops import Affine

BAD = {
    "x is list, wanted a floating tensor": {"x": [1.0, 2.0, 3.0, 4.0]},
    "x is torch.int64, wanted a floating tensor": {"x": torch.zeros(3, 4, dtype=torch.int64)},
    r"x has shape \(3, 5\), wanted \(N, 4\)": {"x": torch.zeros(3, 5)},
    r"x has shape \(4,\), wanted \(N, 4\)": {"x": torch.zeros(4)},
    r"context is None, wanted \(3, 2\)": {"context": None},
    r"context has shape \(3, 1\), wanted \(3, 2\)": {"context": torch.zeros(3, 1)},
    r"context has shape \(2, 2\), wanted \(3, 2\)": {"context": torch.zeros(2, 2)},
    r"context has shape \(2,\), wanted \(3, 2\)": {"context": torch.zeros(2)},
    "context is list": {"context": [1.0, 2.0]},
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("training", [True, False])
def test_bad_input_gets_a_sentence_in_both_modes_and_directions(training, message):
    layer = nn.MaskedAutoregressive(nn.MADE(4, hidden_features=8, context_features=2), Affine())
    given = {"x": torch.zeros(3, 4), "context": torch.zeros(3, 2)} | BAD[message]
    layer.train(training)
    with pytest.raises((TypeError, ValueError), match=message):
        layer.made(**given)
    with pytest.raises((TypeError, ValueError), match=message.replace("x ", "z ", message.startswith("x "))):
        layer.inverse(*given.values())


def test_a_context_where_there_is_none_is_refused():
    with pytest.raises(ValueError, match="context is given, wanted None"):
        nn.MADE(4, hidden_features=8)(torch.zeros(3, 4), torch.zeros(3, 2))


@pytest.mark.parametrize("training", [True, False])
def test_other_precisions_than_the_weights_are_refused(training):
    made = nn.MADE(4, hidden_features=8).train(training)
    with pytest.raises(TypeError, match=r"torch.float64.* wanted .*float32|torch.float32.* wanted .*float64"):
        made(torch.zeros(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("order", ["randm", [0, 1], 5])
def test_an_order_that_is_none_is_refused(order):
    with pytest.raises(ValueError, match=r"order is .*, wanted None, 'reversed', 'random' or a permutation"):
        nn.MADE(4, order=order)


def test_a_transform_that_is_none_is_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match="scale_map is 'tan', wanted one of exp, tanh"):
        nn.MaskedAutoregressive(nn.MADE(4), Affine("tan"))

"""Masked autoregressive flows, and inverse ones."""

from collections.abc import Sequence

from fastgen.models.flow import Flow, check_features
from fastgen.nn.flow import FlowLayer, FlowSequence, Inverse
from fastgen.nn.made import MADE, MaskedAutoregressive
from fastgen.nn.shapes import Permutation
from fastgen.ops import Affine
from fastgen.random import as_int

ORDERS = ("reverse", "random")


class MAF(Flow):
    """Steps of an order and affine maps z_d = scale x_d + shift of what came before in x.

    Papamakarios et al. 2017, arXiv:1705.07057. `log_prob` is one pass of each step's network, and so is
    `sample`, about, by `fastgen.ops.made_inverse`.

    Args:
        shape: of a data point.
        steps: of autoregressive layers.
        hidden: units of each hidden layer of a step's network.
        blocks: of hidden layers after the first one.
        residual: whether they are residual blocks, of two layers.
        order: "reverse": each step takes the features in the opposite order; "random": in one drawn once.
        scale_map, clamp: of the scales, see `fastgen.ops.affine_coupling`.
        context, classes, levels: as `Flow`.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        steps: int = 5,
        hidden: int = 128,
        blocks: int = 2,
        residual: bool = True,
        order: str = "reverse",
        scale_map: str = "tanh",
        clamp: float = 3.0,
        context: int = 0,
        classes: int = 0,
        levels: int = 0,
    ) -> None:
        super().__init__(
            shape, steps=steps, hidden=hidden, blocks=blocks, residual=residual, order=order,
            scale_map=scale_map, clamp=clamp, context=context, classes=classes, levels=levels,
        )  # fmt: skip
        check_features(self, 1)
        steps, hidden = as_int("steps", steps, 1), as_int("hidden", hidden, 1)
        blocks = as_int("blocks", blocks, 0)
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}, wanted one of {', '.join(ORDERS)}")
        layers = self.normalization()
        for step in range(steps):
            layers += [Permutation(order, self.dimensions, seed=step), self._step()]
        self.flow = FlowSequence(layers)

    def _step(self) -> FlowLayer:
        given = self.config
        made = MADE(
            self.dimensions, hidden_features=given["hidden"], blocks=given["blocks"],
            residual=given["residual"], context_features=self.context_features,
        )  # fmt: skip
        return MaskedAutoregressive(made, Affine(given["scale_map"], given["clamp"]))


class IAF(MAF):
    """`MAF` with its directions exchanged: x_d = scale z_d + shift of what came before in z.

    Kingma et al. 2016, arXiv:1606.04934. `sample` is one pass of each step's network, without any loop over
    the features, and so is `log_prob`, about, by `fastgen.ops.made_inverse`. Arguments as `MAF`.
    """

    def _step(self) -> FlowLayer:
        return Inverse(super()._step())

"""Neural spline flows: couplings or autoregressive layers of rational-quadratic splines."""

from collections.abc import Sequence
from functools import partial

from fastgen.models.flow import Flow, check_features
from fastgen.nn.coupling import SplineCoupling
from fastgen.nn.flow import FlowLayer, FlowSequence
from fastgen.nn.made import MADE, MaskedAutoregressive
from fastgen.nn.networks import ResidualMLP
from fastgen.nn.shapes import Permutation
from fastgen.ops import Spline
from fastgen.random import as_int

KINDS = ("coupling", "autoregressive")


class NSF(Flow):
    """Steps of a permutation and monotonic splines (Durkan et al. 2019, arXiv:1906.04032).

    Args:
        shape: of a data point; couplings need 2 numbers or more in all.
        kind: "coupling": half of the features condition the splines of the others; "autoregressive": each
            feature's spline depends on those before it.
        steps: of splines.
        hidden: units of each hidden layer of a step's network.
        blocks: residual blocks of each network, of two layers.
        bins: of a spline.
        bound: the splines cover [-bound, bound], of data normalised by feature, and are the identity beyond.
        context, classes, levels: as `Flow`.
        constant_memory: in training, as `fastgen.nn.FlowSequence`.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        kind: str = "coupling",
        steps: int = 5,
        hidden: int = 128,
        blocks: int = 2,
        bins: int = 8,
        bound: float = 3.0,
        context: int = 0,
        classes: int = 0,
        levels: int = 0,
        constant_memory: bool = False,
    ) -> None:
        super().__init__(
            shape, kind=kind, steps=steps, hidden=hidden, blocks=blocks, bins=bins, bound=bound,
            context=context, classes=classes, levels=levels, constant_memory=constant_memory,
        )  # fmt: skip
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, wanted one of {', '.join(KINDS)}")
        check_features(self, 2 if kind == "coupling" else 1)
        steps, hidden = as_int("steps", steps, 1), as_int("hidden", hidden, 1)
        blocks = as_int("blocks", blocks, 0)
        bins = as_int("bins", bins, 2)
        features = self.dimensions
        mixing = "random" if features > 2 else "reverse"  # of two features each coupling moves the other one
        layers = self.normalization()
        for step in range(steps):
            order: FlowLayer
            if kind == "coupling":
                order, splines = Permutation(mixing, features, seed=step), self._coupling()
            else:
                order, splines = Permutation("reverse", features), self._autoregressive()
            layers += [order, splines]
        self.flow = FlowSequence(layers, constant_memory=constant_memory)

    def _coupling(self) -> FlowLayer:
        given = self.config
        network = partial(
            ResidualMLP, hidden=given["hidden"], blocks=given["blocks"], context=self.context_features
        )
        return SplineCoupling(self.dimensions, network, bins=given["bins"], bound=given["bound"])

    def _autoregressive(self) -> FlowLayer:
        given = self.config
        transform = Spline(bins=given["bins"], bound=given["bound"])
        made = MADE(
            self.dimensions, transform.parameters, hidden_features=given["hidden"], blocks=given["blocks"],
            context_features=self.context_features,
        )  # fmt: skip
        return MaskedAutoregressive(made, transform)

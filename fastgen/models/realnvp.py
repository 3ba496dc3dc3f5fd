"""RealNVP: affine couplings of vectors."""

from collections.abc import Sequence
from functools import partial

from fastgen.models.flow import Flow, check_features
from fastgen.nn.coupling import AffineCoupling
from fastgen.nn.flow import FlowLayer, FlowSequence
from fastgen.nn.networks import MLP
from fastgen.random import as_int

MASKS = ("alternating", "halves")


class RealNVP(Flow):
    """Steps of normalization by feature and affine coupling (Dinh et al. 2017, arXiv:1605.08803).

    What one coupling changes is what the next one looks at.

    Args:
        shape: of a data point, of 2 numbers or more in all.
        steps: couplings.
        hidden: units of each hidden layer of a coupling's network; an int for two layers of so many.
        mask: which features a coupling leaves: "alternating", every second one, or "halves".
        scale_map, clamp: of the couplings' scales, see `fastgen.ops.affine_coupling`.
        context, classes, levels: as `Flow`.
        constant_memory: in training, as `fastgen.nn.FlowSequence`.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        steps: int = 8,
        hidden: int | Sequence[int] = (128, 128),
        mask: str = "alternating",
        scale_map: str = "tanh",
        clamp: float = 2.0,
        context: int = 0,
        classes: int = 0,
        levels: int = 0,
        constant_memory: bool = False,
    ) -> None:
        layer_units = _layer_units(hidden)
        super().__init__(
            shape, steps=steps, hidden=layer_units, mask=mask, scale_map=scale_map, clamp=clamp,
            context=context, classes=classes, levels=levels, constant_memory=constant_memory,
        )  # fmt: skip
        check_features(self, 2)
        steps = as_int("steps", steps, 1)
        if mask not in MASKS:
            raise ValueError(f"mask is {mask!r}, wanted one of {', '.join(MASKS)}")
        features = self.dimensions
        passes = [i % 2 == 0 if mask == "alternating" else i < (features + 1) // 2 for i in range(features)]
        network = partial(MLP, hidden=layer_units, context=self.context_features)
        layers: list[FlowLayer] = []
        for step in range(steps):
            own = [passed != bool(step % 2) for passed in passes]
            layers += [
                *self.normalization(),
                AffineCoupling(features, network, mask=own, scale_map=scale_map, clamp=clamp),
            ]
        self.flow = FlowSequence(layers, constant_memory=constant_memory)


def _layer_units(hidden: object) -> list[int]:
    """The units of each hidden layer: of two layers, as by default, where `hidden` is an int."""
    each = [hidden, hidden] if hasattr(hidden, "__index__") else hidden
    if not isinstance(each, Sequence) or isinstance(each, str):
        raise TypeError(f"hidden is {hidden!r}, wanted an int or a list of ints")
    return [as_int("hidden", units, 1) for units in each]

"""Glow: images, through levels of invertible 1 x 1 convolutions and couplings."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from fastgen.models.flow import Flow
from fastgen.nn.actnorm import ActNorm
from fastgen.nn.coupling import AffineCoupling, ConditionalNormal, Split
from fastgen.nn.flow import FlowLayer, FlowSequence
from fastgen.nn.invertible_linear import InvertibleLinear, NormalizedLinear
from fastgen.nn.networks import ConvNet
from fastgen.nn.shapes import ChannelsLast, Flatten, Squeeze
from fastgen.random import as_int


class Step(FlowLayer):
    """A normalization by channel, an invertible 1 x 1 convolution and a coupling; channels come last.

    In evaluation the first two are one product.
    """

    def __init__(self, channels: int, coupling: FlowLayer) -> None:
        super().__init__()
        self.norm, self.linear = ActNorm(channels), InvertibleLinear(channels, dim=-1)
        self.coupling = coupling
        folded = NormalizedLinear(self.norm, self.linear)
        folded.training = False  # it runs in evaluation alone, and keeps its map
        self._folded = [folded]  # in a list, since its parameters are those above

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, H, W, channels) to z."""
        if self.training:
            x, first = self.norm(x)
            x, second = self.linear(x)
            log_det = first + second
        else:
            x, log_det = self._folded[0](x)
        z, term = self.coupling(x, context)
        return z, log_det + term

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (N, H, W, channels) to x."""
        x, log_det = self.coupling.inverse(z, context)
        if not self.training:
            x, term = self._folded[0].inverse(x)
            return x, log_det + term
        x, first = self.linear.inverse(x)
        x, second = self.norm.inverse(x)
        return x, log_det + first + second


class Glow(Flow):
    """Scales of squeeze, steps and split (Kingma and Dhariwal 2018, arXiv:1807.03039).

    A step is a normalization by channel, an invertible 1 x 1 convolution and an affine coupling. After each
    scale but the last, half of the channels leave, as latent whose mean and scale the other half predicts.

    Args:
        shape: (channels, height, width); height and width are multiples of 2 ** scales.
        scales: how often the image is squeezed.
        steps: of each scale.
        hidden: channels inside of each coupling's network.
        scale_map, clamp: of the couplings' scales, see `fastgen.ops.affine_coupling`.
        context, classes: as `Flow`; all couplings see them.
        conditional_prior: the last scale's latent has a mean and a scale that the class or context decides.
        levels: as `Flow`, by default 256.
        constant_memory: in training, as `fastgen.nn.FlowSequence`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        scales: int = 3,
        steps: int = 16,
        hidden: int = 64,
        scale_map: str = "tanh",
        clamp: float = 2.0,
        context: int = 0,
        classes: int = 0,
        conditional_prior: bool = False,
        levels: int = 256,
        constant_memory: bool = False,
    ) -> None:
        super().__init__(
            shape, scales=scales, steps=steps, hidden=hidden, scale_map=scale_map, clamp=clamp,
            context=context, classes=classes, conditional_prior=conditional_prior, levels=levels,
            constant_memory=constant_memory,
        )  # fmt: skip
        scales, steps = as_int("scales", scales, 1), as_int("steps", steps, 1)
        hidden = as_int("hidden", hidden, 1)
        if len(self.shape) != 3 or any(side % 2**scales for side in self.shape[1:]):
            raise ValueError(
                f"shape is {self.shape}, wanted (channels, height, width), height and width multiples of"
                f" {2**scales} for {scales} scales"
            )
        if conditional_prior and not self.context_features:
            raise ValueError("conditional_prior is True without classes and context, wanted one of them")
        channels, height, width = self.shape
        layers = [ChannelsLast(self.shape), *self._scale(height, width, channels, scales)]
        self.flow = FlowSequence(layers, constant_memory=constant_memory)

    def _scale(self, height: int, width: int, channels: int, left: int) -> list[FlowLayer]:
        """The scale that is met by images (N, height, width, channels), and those after it."""
        height, width, channels = height // 2, width // 2, 4 * channels
        layers: list[FlowLayer] = [Squeeze()]
        for _ in range(self.config["steps"]):
            layers.append(Step(channels, self._coupling(channels)))
        shape = (height, width, channels)
        if left == 1:
            return [*layers, Flatten(shape), *self._prior(height * width * channels)]
        inner = self._scale(height, width, channels // 2, left - 1)
        rest = FlowSequence(inner, constant_memory=self.config["constant_memory"])
        return [*layers, Split(rest, shape, self._coupling(channels, hidden=0))]

    def _prior(self, features: int) -> list[FlowLayer]:
        """What makes the last scale's latent standard normal, whatever the condition."""
        given = self.config["conditional_prior"]
        return [ConditionalNormal(features, self.context_features)] if given else []

    def _coupling(self, channels: int, hidden: int | None = None) -> AffineCoupling:
        given = self.config
        inside = given["hidden"] if hidden is None else hidden
        network = partial(ConvNet, hidden=inside, context=self.context_features)
        return AffineCoupling(channels, network, scale_map=given["scale_map"], clamp=given["clamp"])

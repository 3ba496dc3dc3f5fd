"""What all normalizing flows have in common: a density, samples, and a latent space to walk in."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen import random
from fastgen.models.base import Model, mode
from fastgen.nn.actnorm import ActNorm
from fastgen.nn.dequantization import Dequantization, Logit
from fastgen.nn.flow import FlowLayer, row_sum
from fastgen.random import Stream, as_int, resolve_seed


class Flow(Model):
    """Data x = f^-1(z) of latent z ~ N(0, 1): log p(x) = log N(f(x)) + log|det df/dx|.

    A subclass sets `self.flow`, the layer f from data (N, D) to latent (N, D), D numbers in a data point.

    Args:
        shape: of a data point; an int is the length of a vector.
        context: numbers in the condition that goes with each data point; 0 for none.
        classes: instead of `context`: each data point goes with a class, 0 to classes - 1.
        levels: of grey, 2 to 256, where data are images of integers from 0 to 255 with so many values at
            equal distances; 0 where data are real numbers. Images are dequantised and go through a logit.
        config: what else the subclass takes.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """

    flow: FlowLayer

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        context: int = 0,
        classes: int = 0,
        levels: int = 0,
        **config: Any,
    ) -> None:
        sides = tuple(shape) if isinstance(shape, Iterable) else (shape,)
        sides = tuple(as_int("shape", side, 1) for side in sides)
        context, classes = as_int("context", context, 0), as_int("classes", classes, 0)
        if context and classes:
            raise ValueError(f"context is {context} and classes is {classes}, wanted at most one of them")
        super().__init__(shape=sides, context=context, classes=classes, levels=levels, **config)
        self.shape, self.dimensions = sides, math.prod(sides)
        self.class_count, self.context_features = classes, context or classes
        self.dequantization = Dequantization(levels) if levels else None
        self.logit = Logit() if levels else None

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        """Log density in nats, (N,), differentiable.

        Of images of integers it is an estimate of a lower bound of their log probability, with noise from
        torch's generator; of floating images, real numbers from 0 to 1, it is the log density of these.
        (A little room beyond 0 and 1, where samples fall too, is left; see `fastgen.nn.Logit`.)

        Args:
            x: (N, *shape).
            context: (N, context) floating, or classes (N,) of integers; one condition, (context,) or an int,
                goes for all.
        """
        z, log_det = self.encode(x, context)
        return normal_log_prob(z) + log_det

    def loss(self, batch: Any) -> Tensor:
        """The mean negative log density in nats of a batch: x, or (x, context)."""
        x, *more = batch if isinstance(batch, tuple | list) else (batch,)
        if len(more) > 1:
            raise ValueError(f"batch has {1 + len(more)} members, wanted x, or (x, context)")
        context = more[0] if more else None
        return -self.log_prob(x, context).mean()

    def initialise(self, x: Tensor, context: Any = None) -> None:
        """Let the layers that start from data (`fastgen.nn.ActNorm`) see a batch, if they have seen none."""
        with mode(self, training=True), torch.no_grad():
            self.encode(x, context)

    def encode(self, x: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """Latent (N, D) and log_det (N,) of data x (N, *shape)."""
        self._check_flow()
        rows, conditions = self._rows(x), self._conditions(context, len(x))
        if self.dequantization is None or self.logit is None:
            return self.flow(rows, conditions)
        rows, volume = self.dequantization(rows)
        rows, slope = self.logit(rows.to(self._dtype()))
        z, log_det = self.flow(rows, conditions)
        return z, log_det + slope + volume

    def decode(self, z: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """Data (N, *shape) and log_det (N,) of latent z (N, D); images as real numbers from 0 to 1."""
        self._check_flow()
        check_shape("z", z, (self.dimensions,))
        rows, log_det = self.flow.inverse(z, self._conditions(context, len(z)))
        if self.logit is not None:
            rows, slope = self.logit.inverse(rows)
            log_det = log_det + slope
        return rows.unflatten(1, self.shape), log_det

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self, sample_ids: Tensor, *, seed: int | None, context: Any = None, temperature: float = 1.0
    ) -> Tensor:
        """Draw the samples of these ids, in evaluation mode.

        Args:
            sample_ids: (N,) int64.
            seed: 64 bits; None takes a seed from torch's default generator.
            context: as in `log_prob`.
            temperature: factor of the latent's standard deviation, finite and at least 0; 0 gives the image
                of the latent's mode.

        Returns:
            (N, *shape) in the dtype of the parameters; images uint8.
        """
        with mode(self, training=False):
            x, _ = self.decode(self.latent(sample_ids, seed=seed, temperature=temperature), context)
        return self._finished(x)

    def sample_and_log_prob(
        self, sample_ids: Tensor, *, seed: int | None, context: Any = None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Samples (N, *shape) and their log densities (N,) at temperature 1, in one pass.

        Images are real numbers from 0 to 1, before they are rounded to grey values. Differentiable by the
        parameters, and in the mode the model is in. Arguments as in `sample`.
        """
        z = self.latent(sample_ids, seed=seed, temperature=temperature)
        x, log_det = self.decode(z, context)
        return x, normal_log_prob(z) - log_det

    def latent(self, sample_ids: Tensor, *, seed: int | None, temperature: float = 1.0) -> Tensor:
        """The latent (N, D) that `sample` starts from: normal numbers times the temperature."""
        finite = isinstance(temperature, int | float) and not isinstance(temperature, bool)
        if not (finite and 0 <= temperature < math.inf):
            raise ValueError(f"temperature is {temperature!r}, wanted a finite number of at least 0")
        noise = random.normal(resolve_seed(seed), sample_ids, n=self.dimensions, stream=Stream.FLOW_LATENT)
        return (noise * temperature).to(self._dtype())

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int, context: Any = None) -> Tensor:
        """Data on straight lines in latent space from a to b, ends included, in evaluation mode.

        Args:
            a, b: (N, *shape).
            steps: points on each line, at least 2.
            context: as in `log_prob`, the same along each line.

        Returns:
            (N, steps, *shape) as `sample` gives them.
        """
        steps = as_int("steps", steps, 2)
        check_shape("a", a, self.shape)
        check_shape("b", b, self.shape)
        if a.shape != b.shape:
            raise ValueError(f"b has shape {tuple(b.shape)}, wanted that of a, {tuple(a.shape)}")
        with mode(self, training=False):
            (start, _), (end, _) = self.encode(a, context), self.encode(b, context)
            along = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[:, None]
            z = torch.lerp(start[:, None], end[:, None], along)
            each = [self.decode(z[:, i], context)[0] for i in range(steps)]
        return self._finished(torch.stack(each, 1))

    def _finished(self, x: Tensor) -> Tensor:
        return x if self.dequantization is None else self.dequantization.quantize(x)

    def normalization(self) -> list[FlowLayer]:
        """For subclasses: `ActNorm` by feature; no layer for images.

        Some pixels of images hardly ever differ from the ground; one that does would then lie far out.
        """
        return [] if self.dequantization else [ActNorm(self.dimensions)]

    def _check_flow(self) -> None:
        if not hasattr(self, "flow"):
            name = type(self).__name__
            raise AttributeError(f"{name} has no self.flow, wanted its constructor to set that layer")

    def _dtype(self) -> torch.dtype:
        parameter = next(self.parameters(), None)
        return torch.get_default_dtype() if parameter is None else parameter.dtype

    def _rows(self, x: Tensor) -> Tensor:
        """(N, *shape) as (N, D) in the dtype of the parameters, or integers if they are grey values."""
        check_shape("x", x, self.shape)
        if x.is_complex():
            raise TypeError(f"x is {x.dtype}, wanted real numbers")
        grey = self.dequantization is not None and not x.is_floating_point()
        return x.flatten(1) if grey else x.flatten(1).to(self._dtype())

    def _conditions(self, context: Any, rows: int) -> Tensor | None:
        """What the layers get for `context`: (rows, C) in the dtype of the parameters, or None."""
        features = self.context_features
        if not features:
            if context is not None:
                raise ValueError("context was given, but this flow was made without context and classes")
            return None
        wanted = f"({rows},) classes 0 to {features - 1}" if self.class_count else f"({rows}, {features})"
        if context is None:
            raise ValueError(f"context is None, wanted {wanted}")
        parameter = next(self.parameters(), None)
        try:
            given = torch.as_tensor(context)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"context is {context!r}, wanted {wanted}") from None
        given = given.to("cpu" if parameter is None else parameter.device)
        each = given.expand(rows, *given.shape) if given.dim() == (0 if self.class_count else 1) else given
        if each.shape != ((rows,) if self.class_count else (rows, features)):
            raise ValueError(f"context has shape {tuple(given.shape)}, wanted {wanted}")
        if not self.class_count:
            return each.to(self._dtype())
        traced = torch.compiler.is_compiling()  # when no value is known, and one_hot checks at run time
        if each.is_floating_point() or (not traced and bool(((each < 0) | (each >= features)).any())):
            raise ValueError(f"context is {each.dtype} from {each.min()} to {each.max()}, wanted {wanted}")
        return torch.nn.functional.one_hot(each.long(), features).to(self._dtype())


def normal_log_prob(z: Tensor) -> Tensor:
    """Log density (N,) of standard normal numbers z (N, D), in nats."""
    return -0.5 * (row_sum(z.square()) + z.shape[1] * math.log(2 * math.pi))


def check_shape(name: str, x: object, shape: Sequence[int]) -> None:
    """Raise unless x is a tensor (N, *shape)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {type(x).__name__}, wanted a tensor")
    if x.dim() == 0 or x.shape[1:] != tuple(shape):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted (N, {wanted})")


def check_features(flow: Flow, least: int) -> None:
    """Raise unless the flow's data points have at least so many numbers."""
    if flow.dimensions < least:
        raise ValueError(f"shape is {flow.shape}, wanted at least {least} numbers in a data point")

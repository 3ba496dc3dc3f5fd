"""Training through a sequence of flow layers in memory that does not grow with their number.

The forward pass keeps its result alone. The backward pass goes from layer to layer: the inverse gives back
the layer's input, the layer is run again with gradients, and these are taken at once (Gomez et al. 2017,
arXiv:1707.04585).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastgen.nn.flow import FlowLayer

Pair = tuple[Tensor, Tensor]


class Conditions(NamedTuple):
    """What a layer's result depends on besides its arguments: random numbers, and autocast."""

    cpu: Tensor
    device: torch.device
    cuda: Tensor | None
    autocast: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, x: Tensor) -> Conditions:
        """As they are."""
        kind = x.device.type
        cuda = torch.cuda.get_rng_state(x.device) if kind == "cuda" else None
        on, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        return cls(torch.get_rng_state(), x.device, cuda, on, dtype)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """As they were; the generators are left as if nothing had been drawn."""
        devices = [] if self.cuda is None else [self.device]
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.autocast)
        with torch.random.fork_rng(devices), autocast:
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: Sequence[FlowLayer], x: Tensor, context: Tensor | None, *parameters: Tensor
    ) -> Pair:
        ctx.layers, ctx.conditions = layers, []
        log_det = x.new_zeros(len(x))
        z = x
        for layer in layers:
            ctx.conditions.append(Conditions.now(z))
            z, term = layer(z, context)
            log_det = log_det + term
        # A result that is the input itself would be taken for one that was changed in place.
        z = z.view_as(z) if z is x else z
        ctx.versions = [p._version for p in parameters]  # after the layers that start from data
        ctx.save_for_backward(z, context)
        ctx.parameters = parameters
        return z, log_det

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_log_det: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients of gradients were asked of a flow with constant_memory=True, which does not keep"
                " what they need; set constant_memory=False"
            )
        if [p._version for p in ctx.parameters] != ctx.versions:
            raise RuntimeError(
                "a parameter was changed between the forward and the backward pass of a flow with"
                " constant_memory=True, whose inputs can then not be found again"
            )
        z, context = ctx.saved_tensors
        sums: dict[Tensor, Tensor] = {}
        for layer, conditions in zip(reversed(ctx.layers), reversed(ctx.conditions), strict=True):
            with conditions.again():
                x = layer.inverse(z, context)[0]
            leaf = x.detach().requires_grad_(x.is_floating_point())
            given = None if context is None else context.detach().requires_grad_(ctx.needs_input_grad[2])
            with conditions.again(), torch.enable_grad():
                outputs = layer(leaf, given)
            own = {p for p in layer.parameters() if p.requires_grad}
            sources = [leaf, *([given] if ctx.needs_input_grad[2] else []), *own]
            grads = _gradients(outputs, sources, (grad_z, grad_log_det))
            grad_z, z = grads[0], x
            for source, grad in zip(sources[1:], grads[1:], strict=True):
                key = context if source is given else source
                sums[key] = sums[key] + grad if key in sums else grad
        of_parameters = [sums.get(p) for p in ctx.parameters]
        return None, grad_z, sums.get(context), *of_parameters


def run(layers: Sequence[FlowLayer], x: Tensor, context: Tensor | None) -> Pair:
    """What the layers make of x, one after the other, and their log_det; only the result is kept."""
    parameters = {p: None for layer in layers for p in layer.parameters()}
    return _Reversible.apply(list(layers), x, context, *parameters)


def _gradients(outputs: Pair, sources: list[Tensor], grads: Pair) -> list[Tensor]:
    """Gradients of the sources, zeros for those that play no part."""
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if y.requires_grad]
    found = torch.autograd.grad(
        [y for y, _ in pairs], sources, [g for _, g in pairs], allow_unused=True, materialize_grads=True
    )
    return list(found)

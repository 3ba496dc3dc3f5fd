"""Tangents of forward-mode differentiation: through the reference, which torch differentiates by itself.

Kernels see numbers alone, and would lose tangents without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree


def is_on() -> bool:
    """Whether there may be tangents at all."""
    return forward_ad._current_level >= 0


def has_tangents(arguments: tuple[Any, ...]) -> bool:
    """Whether an argument has a tangent."""
    return is_on() and any(_tangent(x) is not None for x in _pytree.tree_leaves(arguments))


def with_tangents(
    name: str, run: Callable[..., Any], reference: Callable[..., Any] | None, arguments: tuple[Any, ...]
) -> Any:
    """What `run` returns of the arguments, with the tangents that `reference` gives to it.

    Raises:
        NotImplementedError: the op has no derivative, so that there is no `reference`.
    """
    if reference is None:
        raise NotImplementedError(f"{name} has no derivative, but was given a tangent: detach its arguments")
    plain = _pytree.tree_map_only(Tensor, lambda x: forward_ad.unpack_dual(x).primal, arguments)
    result = run(*plain)
    slopes = map(_tangent, _pytree.tree_leaves(reference(*arguments)))
    values, shape = _pytree.tree_flatten(result)
    pairs = zip(values, slopes, strict=True)
    return _pytree.tree_unflatten([x if t is None else forward_ad.make_dual(x, t) for x, t in pairs], shape)


def _tangent(x: Any) -> Tensor | None:
    return forward_ad.unpack_dual(x).tangent if isinstance(x, Tensor) else None

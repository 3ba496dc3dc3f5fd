"""How the modules of a foreign flow are swapped: in a copy of the model some of them change their class.

The new class is a subclass of the old one, without state of its own. Parameters, buffers, their names, hooks
and what a module prints stay as they were, and so `state_dict`, optimisers, `.to()`, `copy.deepcopy` and
pickle work as before.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.nn import Module

from fastgen.integrations import ALREADY, Part, Report


class Swap(NamedTuple):
    """The class that takes a module's place, what the report says of it, and why a module may have to stay.

    `obstacle` returns the reason in words, or None where nothing is in the way; `inverse_obstacle` why the
    new class leaves the inverse to the old one.
    """

    new: type
    note: str
    obstacle: Callable[[Any], str | None] = lambda module: None
    inverse_obstacle: Callable[[Any], str | None] = lambda module: None


def swap_modules(
    model: Module,
    swaps: Mapping[type, Swap],
    kept: Mapping[type, str],
    memo: dict[int, Any] | None = None,
) -> tuple[Module, Report]:
    """The copy of a model with its modules swapped, and the report.

    Args:
        model: stays as it is.
        swaps: by the very class of a module; subclasses of others may mean something else, and are kept.
        kept: why modules of these classes and their subclasses are kept, the first that fits; those with an
            empty reason, such as containers, and those of no class here, are not named.
        memo: what `copy.deepcopy` shall take in place of parts of the model, by their `id`.
    """
    new, report = copy.deepcopy(model, memo), Report([], [])
    ours = {swap.new for swap in swaps.values()}
    for path, module in new.named_modules():
        name = f"{path}: {type(module).__name__}" if path else type(module).__name__
        swap = swaps.get(type(module))
        reason = swap.obstacle(module) if swap else _reason(module, kept, ours)
        if swap and reason is None:
            slow = swap.inverse_obstacle(module)
            module.__class__ = swap.new
            report.replaced.append(Part(name, swap.note if slow is None else swap.note.split(",")[0]))
            report.kept.extend([] if slow is None else [Part(f"{name}.inverse", slow)])
        elif reason:
            report.kept.append(Part(name, reason))
    return new, report


def _reason(module: Module, kept: Mapping[type, str], ours: set[type]) -> str:
    if type(module) in ours:
        return ALREADY
    return next((reason for known, reason in kept.items() if isinstance(module, known)), "")

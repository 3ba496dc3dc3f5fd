"""`fastgen.accelerate`: the models of other libraries, sampling with fastgen's ops.

A library is imported only once one of its models comes in.
"""

import dataclasses
import importlib
from typing import Any

import torch

# Top-level module of a model's class, our file for it, and what that file takes.
_LIBRARIES = {
    "sklearn": ("fastgen.integrations.sklearn", "scikit-learn's BernoulliRBM, alone or in a Pipeline"),
    "nflows": ("fastgen.integrations.nflows", "flows and transforms of nflows"),
    "zuko": ("fastgen.integrations.zuko", "lazy flows and transforms of zuko"),
    "normflows": ("fastgen.integrations.normflows", "models and flows of normflows"),
    "transformers": (
        "fastgen.integrations.transformers",
        "causal language models of transformers (GPT-2, Llama, Mistral, Qwen2)",
    ),
}

ALREADY = "is accelerated already"


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model, such as "BernoulliRBM.gibbs", and by what it was replaced, or why it was kept."""

    name: str
    note: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What `accelerate` replaced, and what it kept as it was; prints as two lists."""

    replaced: list[Part]
    kept: list[Part]

    def __str__(self) -> str:
        """One line a part."""
        width = max((len(part.name) for part in [*self.replaced, *self.kept]), default=0)
        lines = []
        for title, parts in (("replaced", self.replaced), ("kept", self.kept)):
            lines += [f"{title}:", *(f"  {part.name:{width}}  {part.note}" for part in parts)]
            lines += [] if parts else ["  nothing"]
        return "\n".join(lines)


def accelerate(model: Any) -> tuple[Any, Report]:
    """A model that samples with fastgen what `model` samples, from the same distribution.

    Args:
        model: a causal language model of transformers (GPT-2, Llama, Mistral, Qwen2), whose `generate` keeps
            its arguments and greedy tokens; scikit-learn's BernoulliRBM, fitted or not, or a Pipeline with
            some in it; a flow or transform of nflows, zuko or normflows, or a module with some in it. It
            stays as it is.

    Returns:
        The new model, with the methods, parameters, shapes and dtypes of the old one, and a report.

    Raises:
        TypeError: fastgen knows nothing to replace in this model, or has replaced it already.
    """
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__qualname__}, wanted a model of that class")
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    why = ""
    for library in _libraries(model):
        accelerated, report = importlib.import_module(_LIBRARIES[library][0]).accelerate(model)
        if report.replaced:
            return accelerated, report
        if any(part.note == ALREADY for part in report.kept):
            raise TypeError(f"model is {name}, which {ALREADY}: there is nothing more to replace")
        why = next((f" ({part.name}: {part.note})" for part in report.kept), why)
    supported = "; ".join(takes for _, takes in _LIBRARIES.values())
    raise TypeError(f"model is {name}, in which fastgen knows nothing to replace{why}; it takes {supported}")


def _libraries(model: Any) -> list[str]:
    """The libraries that a model's class comes from, or those of its parts, each once."""
    is_module = isinstance(model, torch.nn.Module)  # as models of all libraries are but scikit-learn's
    parts = model.modules() if is_module else [model]
    modules = (base.__module__.split(".")[0] for part in parts for base in type(part).__mro__)
    found = [library for library in dict.fromkeys(modules) if library in _LIBRARIES]
    return [library for library in found if is_module or library == "sklearn"]


__all__ = ["ALREADY", "Part", "Report", "accelerate"]

"""What `generate` and `stream` take besides prompts: checks, before anything is computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from fastgen.generation.sampling import Settings
from fastgen.generation.stopping import TextStream
from fastgen.generation.tokenizer import Tokenizer
from fastgen.ops import TransformerWeights
from fastgen.random import as_int

SETTINGS = tuple(field.name for field in fields(Settings))
_DRAWS_NOTHING = "a search with beams draws nothing"
_WITHOUT_BEAMS = {
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "typical_p", "sample_ids"), _DRAWS_NOTHING),
    **dict.fromkeys(("draft", "draft_tokens"), "a search with beams sees its tokens one after the other"),
    "on_text": "a search with beams knows its texts at its end alone",
    "pass_tokens": "a search with beams takes each prompt in one pass",
    "cache_positions": "a search with beams takes the memory that it needs",
}


def names_of(function: Callable[..., Any]) -> list[str]:
    """The names of all options that `generate` or `stream` takes."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] + list(SETTINGS)


def check_settings(
    function: Callable[..., Any], settings: dict[str, Any], elsewhere: Callable[..., Any] | None = None
) -> None:
    """Raise TypeError for an option that is none of the function's, or that goes with another one."""
    known = names_of(function)
    for name in settings:
        if name not in known:
            others = [] if elsewhere is None else names_of(elsewhere)
            why = f"is no option of {function.__name__}"
            if elsewhere is not None and name in others:
                why = f"goes with {elsewhere.__name__}, but {function.__name__} gives one text"
            raise TypeError(f"{name!r} {why}; it takes {', '.join(known)}")


def check_beams(beams: int, n: int, batch_size: int, others: dict[str, Any]) -> None:
    """Refuse what a search has no use for."""
    if n > beams:
        raise ValueError(f"n is {n}, wanted at most beams = {beams}, since a search ends with so many")
    if batch_size < beams:
        raise ValueError(f"batch_size is {batch_size}, wanted at least beams = {beams}, which go together")
    for name, value in others.items():
        if value is not None and name in _WITHOUT_BEAMS:
            raise ValueError(f"{name} is {value!r}, but {_WITHOUT_BEAMS[name]}: leave it out")


def text_of(tokenizer: Tokenizer | None, stop: str | Sequence[str], streaming: bool) -> TextStream | None:
    """The text that every sample begins with, or None where it is wanted at the end only."""
    stops = _stops(stop)
    if not stops and not streaming:
        return None
    if tokenizer is None:
        raise ValueError("this model has no tokenizer, so there is no text to stop at or to stream")
    return TextStream(tokenizer, stops)


def _stops(given: str | Sequence[str]) -> tuple[str, ...]:
    texts = given if isinstance(given, list | tuple | set) else [given]
    if any(not isinstance(text, str) or not text for text in texts):
        raise ValueError(f"stop is {given!r}, wanted a string or several, none of them empty")
    return tuple(texts)


def ids_of(given: Sequence[int] | Tensor) -> list[int]:
    """The ids of samples as a list."""
    if not isinstance(given, Tensor | Sequence):
        raise TypeError(f"sample_ids is {given!r}, wanted a list of ints")
    ids = given.tolist() if isinstance(given, Tensor) else list(given)
    return [as_id("an id of sample_ids", i) for i in ids]


def as_id(name: str, value: object) -> int:
    """The id of a sample as int; TypeError or ValueError: it is none."""
    found = as_int(name, value)
    if not 0 <= found < 2**56:
        raise ValueError(f"{name} is {found}, wanted 0 to 2**56 - 1")
    return found


def limit_of(weights: TransformerWeights, index: int, prompt: list[int], max_new_tokens: int) -> int:
    """How many tokens may follow this prompt: the last one needs no position."""
    bad = next((token for token in prompt if not 0 <= token < weights.vocabulary), None)
    if bad is not None:
        raise ValueError(f"prompt {index} holds token {bad}, wanted 0 to {weights.vocabulary - 1}")
    context = weights.context
    if context is None:
        return max_new_tokens
    if len(prompt) > context:
        raise ValueError(
            f"prompt {index} has {len(prompt)} tokens, wanted at most {context}, the model's context"
        )
    return min(max_new_tokens, context - len(prompt) + 1)

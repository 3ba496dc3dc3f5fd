"""What a model is asked: texts, tokens and chats, as lists of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from fastgen.generation.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, its tokens, or a chat: messages {"role": "user", "content": a text, or parts of text}."""


def prompts_of(
    given: Prompt | Sequence[Prompt], tokenizer: Tokenizer | None, *, what: str = "prompt", begin: bool = True
) -> list[list[int]]:
    """The tokens of one prompt or of several.

    Args:
        given: one of the three kinds, or several.
        tokenizer: of the model.
        what: they are called.
        begin: whether the token of the beginning stands before texts.

    Raises:
        TypeError, ValueError: a prompt is none of the three kinds, is empty, or needs a tokenizer that the
            model has not.
    """
    if isinstance(given, Tensor | np.ndarray):
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise TypeError(f"{what}s is {given!r}, wanted a text, tokens, messages, or a list of such")
    one = isinstance(given, str) or (len(given) > 0 and isinstance(given[0], Integral | Mapping))
    several = [given] if one else given
    return [_tokens(f"{what} {i}", prompt, tokenizer, begin) for i, prompt in enumerate(several)]


def _tokens(name: str, prompt: Any, tokenizer: Tokenizer | None, begin: bool) -> list[int]:
    kinds = "wanted a text, tokens, or messages {'role', 'content'}"
    if isinstance(prompt, Tensor | np.ndarray):
        prompt = prompt.tolist()
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise TypeError(f"{name} is {prompt!r}, {kinds}")
    if isinstance(prompt, str) or (len(prompt) and isinstance(prompt[0], Mapping)):
        if tokenizer is None:
            raise ValueError(f"{name} is text, but this model has no tokenizer; give tokens")
        try:
            if isinstance(prompt, str):
                tokens = tokenizer.encode(prompt, begin=begin)
            else:
                tokens = tokenizer.chat(prompt)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    elif all(isinstance(token, Integral) and not isinstance(token, bool) for token in prompt):
        tokens = [int(token) for token in prompt]
    else:
        raise TypeError(f"{name} is {prompt!r}, {kinds}")
    if not tokens and begin and tokenizer is not None and tokenizer.begin_token is not None:
        return [tokenizer.begin_token]
    if not tokens and prompt and isinstance(prompt, str):
        raise ValueError(f"{name} is {prompt!r}, of which the model's tokenizer makes no token")
    if not tokens:
        raise ValueError(f"{name} is empty, wanted at least one token")
    return tokens

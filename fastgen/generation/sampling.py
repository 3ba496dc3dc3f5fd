"""How the next token of each sequence is drawn: settings of one prompt, and of a batch of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastgen.ops.sample_logits import check_setting, sample_logits

if TYPE_CHECKING:
    from fastgen.generation.row import Row


@dataclass(frozen=True)
class Settings:
    """The settings of `fastgen.ops.sample_logits` for one sequence; `logit_bias` adds to logits by token."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None

    @property
    def penalises(self) -> bool:
        """Whether earlier tokens matter."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


NUMBERS = tuple(field.name for field in fields(Settings) if field.name != "logit_bias")


def settings_of(prompts: int, options: dict[str, Any], vocabulary: int) -> list[Settings]:
    """The settings of each prompt, from options that are one value for all or a list of one for each.

    Values are checked here, before the first pass: a bad one must not end a run that has texts already.

    Raises:
        TypeError: a value of another type.
        ValueError: a list of another length, or a value out of its range.
    """
    each = {}
    for name, given in options.items():
        value = given.tolist() if isinstance(given, Tensor) else given
        values = list(value) if isinstance(value, list | tuple) else [value] * prompts
        if len(values) != prompts:
            raise ValueError(
                f"{name} has {len(values)} values, wanted one, or one for each of {prompts} prompts"
            )
        for one in values:
            _check_bias(one, vocabulary) if name == "logit_bias" else check_setting(name, one)
        each[name] = values
    return [Settings(**{name: values[i] for name, values in each.items()}) for i in range(prompts)]


def _check_bias(bias: Any, vocabulary: int) -> None:
    if bias is None:
        return
    if not isinstance(bias, dict) or not all(
        isinstance(token, int) and isinstance(value, int | float) for token, value in bias.items()
    ):
        raise TypeError(f"logit_bias is {bias!r}, wanted a dict of numbers by token")
    for token, value in bias.items():
        if not 0 <= token < vocabulary:
            raise ValueError(f"logit_bias names token {token}, wanted 0 to {vocabulary - 1}")
        if not value < float("inf"):
            raise ValueError(f"logit_bias of token {token} is {value}, wanted a finite number or -inf")


class Sampler:
    """Draws the next token of each row of a pass; keeps what does not change while the rows are the same."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.vocabulary, self.seed = vocabulary, seed
        self._rows: list[Row] = []
        self._fixed: dict[str, Any] = {}

    def draw(
        self, logits: Tensor, rows: list[Row], ahead: list[list[int]] | None = None
    ) -> tuple[list[int], list[float]]:
        """Tokens, and their log-probabilities under the model itself, of logits (rows, vocabulary).

        `ahead` holds, for each row of logits, the tokens guessed after those of its sequence.
        """
        if rows != self._rows:
            self._rows, self._fixed = list(rows), self._settings(rows, logits.device)
        both = list(zip(rows, ahead or [[]] * len(rows), strict=True))
        steps = torch.tensor([len(row.tokens) + len(guessed) for row, guessed in both], device=logits.device)
        past = None
        if "prompt_tokens" in self._fixed:
            past = padded([row.tokens + guessed for row, guessed in both], logits.device)
        drawn = sample_logits(logits, seed=self.seed, step=steps, output_tokens=past, **self._fixed)
        return drawn.token.tolist(), drawn.log_prob.tolist()

    def _settings(self, rows: list[Row], device: torch.device) -> dict[str, Any]:
        fixed: dict[str, Any] = {"sample_ids": torch.tensor([row.sample_id for row in rows], device=device)}
        for name in NUMBERS:
            values = [getattr(row.settings, name) for row in rows]
            same = all(value == values[0] for value in values)
            # float64, as `sample_logits` takes a number: a row's setting has the same bits alone.
            dtype = torch.int64 if name == "top_k" else torch.float64
            fixed[name] = values[0] if same else torch.tensor(values, dtype=dtype, device=device)
        if any(row.settings.penalises for row in rows):
            fixed["prompt_tokens"] = padded([row.prompt for row in rows], device)
        if any(row.settings.logit_bias for row in rows):
            fixed["logit_bias"] = biases([row.settings for row in rows], self.vocabulary).to(device)
        return fixed


def biases(settings: Sequence[Settings], vocabulary: int) -> Tensor:
    """What each row's `logit_bias` adds to its logits (rows, vocabulary)."""
    bias = torch.zeros(len(settings), vocabulary)
    for i, its in enumerate(settings):
        for token, value in (its.logit_bias or {}).items():
            bias[i, token] = value
    return bias


def padded(lists: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Lists of tokens as rows (B, longest), filled up with -1, which is no token."""
    longest = max(map(len, lists), default=0)
    rows = [[*tokens, *[-1] * (longest - len(tokens))] for tokens in lists]
    return torch.tensor(rows, dtype=torch.int64, device=device).view(len(lists), longest)

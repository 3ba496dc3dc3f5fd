"""The op `sample_logits`: the next token of every row of logits, drawn under its own settings.

Triton covers the GPU: a row is a few passes over memory, to which CUDA C++ would add nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgen.ops._registry import Op, register
from fastgen.random import Stream, as_int, check_sample_ids, resolve_sample_ids, resolve_seed
from fastgen.reference import sample_logits as reference

MAX_VOCABULARY = 2**22  # sums of as many weights of 2**40 units stay below 2**63

# Columns of the settings matrix: name, lowest, highest, whether an integer.
_SETTINGS = (
    ("temperature", 0.0, 1e30, False),
    ("top_k", 0, 2**53, True),
    ("top_p", 0.0, 1.0, False),
    ("min_p", 0.0, 1.0, False),
    ("typical_p", 0.0, 1.0, False),
    ("repetition_penalty", 1e-6, 1e6, False),
    ("presence_penalty", -1e6, 1e6, False),
    ("frequency_penalty", -1e6, 1e6, False),
)
_LOWEST = torch.tensor([low for _, low, _, _ in _SETTINGS], dtype=torch.float64)
_HIGHEST = torch.tensor([high for _, _, high, _ in _SETTINGS], dtype=torch.float64)


class Sampled(NamedTuple):
    """What `sample_logits` returns.

    Attributes:
        token: (B,) int64, the token drawn for each row.
        log_prob: (B,) float32, its log-probability under softmax(logits): the model's own, before settings.
    """

    token: Tensor
    log_prob: Tensor


@torch.no_grad()
def sample_logits(
    logits: Tensor,
    *,
    seed: int | None = None,
    sample_ids: Tensor | None = None,
    step: int | Tensor = 0,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    typical_p: float | Tensor = 1.0,
    repetition_penalty: float | Tensor = 1.0,
    presence_penalty: float | Tensor = 0.0,
    frequency_penalty: float | Tensor = 0.0,
    prompt_tokens: Tensor | None = None,
    output_tokens: Tensor | None = None,
    logit_bias: Tensor | None = None,
) -> Sampled:
    """Draw one token for each row of logits.

    The settings act in this order, each on what the ones before it left:

    1. `logit_bias` is added.
    2. `repetition_penalty`: a logit of a token of the prompt or the output is divided by it if positive, and
       multiplied by it if not (Keskar et al. 2019, arXiv:1909.05858).
    3. `frequency_penalty` times the token's count in the output, and `presence_penalty` once if the count is
       not zero, are subtracted.
    4. `temperature` divides the logits; 0 takes the highest logit, of several the lowest token.
    5. `top_k` keeps the k highest logits; of equal ones the lower tokens first. 0 keeps all.
    6. `top_p` keeps the fewest of the most probable tokens whose probability reaches p (Holtzman et al. 2020,
       arXiv:1904.09751); of equal ones the lower tokens first. 0 keeps one, 1 keeps all.
    7. `min_p` keeps the tokens with at least min_p times the highest probability (Nguyen et al. 2024,
       arXiv:2407.01082).
    8. `typical_p` keeps the fewest tokens whose surprise is nearest to the entropy of what is left and whose
       probability reaches p (Meister et al. 2023, arXiv:2202.00666). 1 keeps all.
    9. The token with the highest logit + Gumbel noise of all that are left is drawn, which draws each with
       its probability among them.

    The noise of token t is -log(-log u) of the 31 highest bits of element t at (seed, sample id, step,
    `Stream.TOKEN`), so a token keeps its noise whatever else is in the batch, or is filtered out; every
    probability is right to 2**-31. Probabilities are float32, and those below 2**-41 of the highest count as
    zero when masses are compared; their sums are exact, so every implementation draws the same token.

    A logit of -inf is never drawn. +inf counts as the largest float32: such tokens share the whole
    probability. Nothing is differentiable: results never require a gradient.

    Args:
        logits: (B, V) float32, bfloat16 or float16; V is 1 to 2**22.
        seed: 64 bits; None takes a seed from torch's default generator.
        sample_ids: (B,) int64, 0 <= id < 2**56; None is 0 .. B - 1. Rows of one id and step share noise.
        step: 0 .. 2**32 - 1, the number of the draw in its sample: an int, or int64 (B,).
        temperature: 0 .. 1e30. This and all settings below: a number, or a tensor (B,) of one a row.
        top_k: an integer, 0 or more; more than V keeps all.
        top_p: 0 .. 1.
        min_p: 0 .. 1.
        typical_p: 0 .. 1.
        repetition_penalty: 1e-6 .. 1e6; above 1 discourages.
        presence_penalty: -1e6 .. 1e6; above 0 discourages.
        frequency_penalty: -1e6 .. 1e6; above 0 discourages.
        prompt_tokens: (B, n) int64, the tokens of the prompts; -1 is no token, to fill up shorter rows.
        output_tokens: (B, m) int64, the tokens drawn so far; -1 is no token.
        logit_bias: (V,) or (B, V) floating, finite or -inf, which bans the token.

    Returns:
        Sampled(token, log_prob).

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted; a row of logits that holds
            NaN, or in which no token is above -inf, is named.
    """
    _check_logits(logits)
    batch, vocabulary = logits.shape
    warping = (temperature, top_k, top_p, min_p, typical_p)
    penalties = (repetition_penalty, presence_penalty, frequency_penalty)
    return Sampled(
        *_call(
            logits.contiguous(),
            resolve_seed(seed),
            resolve_sample_ids(sample_ids, batch, logits.device),
            _steps(step, batch, logits.device),
            _settings((*warping, *penalties), batch, logits.device),
            _tokens("prompt_tokens", prompt_tokens, logits),
            _tokens("output_tokens", output_tokens, logits),
            _bias(logit_bias, batch, vocabulary, logits.device),
        )
    )


def _check_logits(logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        came = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits is {came}, wanted a float32, bfloat16 or float16 tensor")
    if logits.dim() != 2 or not 1 <= logits.shape[1] <= MAX_VOCABULARY:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, wanted (rows, 1 to {MAX_VOCABULARY} tokens)"
        )


def _steps(step: int | Tensor, batch: int, device: torch.device) -> Tensor:
    if isinstance(step, Tensor):
        if step.dtype != torch.int64 or step.device != device:
            raise TypeError(
                f"step is {step.dtype} on {step.device}, wanted an int or an int64 tensor on {device}"
            )
        if step.shape not in ((), (batch,)):
            raise ValueError(f"step has shape {tuple(step.shape)}, wanted () or ({batch},)")
        return step.expand(batch).contiguous()
    step = as_int("step", step)
    if not 0 <= step < 2**32:
        raise ValueError(f"step is {step}, wanted 0 to 2**32 - 1")
    return torch.full((batch,), step, dtype=torch.int64, device=device)


def _settings(given: tuple[float | Tensor, ...], batch: int, device: torch.device) -> Tensor:
    """(B, 8) float64, a column a setting."""
    if not any(isinstance(value, Tensor) for value in given):
        numbers = [_number(value, *setting) for value, setting in zip(given, _SETTINGS, strict=True)]
        return torch.tensor([numbers], dtype=torch.float64, device=device).expand(batch, -1).contiguous()
    columns = []
    for value, setting in zip(given, _SETTINGS, strict=True):
        if isinstance(value, Tensor):
            columns.append(_column(value, setting, batch, device))
        else:
            number = _number(value, *setting)
            columns.append(torch.full((batch,), number, dtype=torch.float64, device=device))
    return torch.stack(columns, dim=1)


def check_setting(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless the setting `name` may be the number `value`."""
    _number(value, *next(setting for setting in _SETTINGS if setting[0] == name))


def _number(value: Any, name: str, low: float, high: float, integer: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int if integer else (int, float)):
        raise TypeError(f"{name} is {value!r}, wanted {'an int' if integer else 'a number'} or a tensor")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, wanted {low:g} to {high:g}")
    return float(value)


def _column(value: Tensor, setting: tuple[Any, ...], batch: int, device: torch.device) -> Tensor:
    name, _, _, integer = setting
    right = value.dtype in (torch.int64, torch.int32) if integer else value.is_floating_point()
    if not right or value.device != device:
        kind = "an integer" if integer else "a floating"
        raise TypeError(
            f"{name} is {value.dtype} on {value.device}, wanted a number or {kind} tensor on {device}"
        )
    if value.shape not in ((), (batch,)):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted () or ({batch},)")
    return value.double().expand(batch)


def _tokens(name: str, value: Tensor | None, logits: Tensor) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.device != logits.device:
        came = f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} is {came}, wanted an int64 tensor on {logits.device}")
    if value.dim() != 2 or value.shape[0] != logits.shape[0]:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted ({logits.shape[0]}, tokens)")
    return value.contiguous()


def _bias(value: Tensor | None, batch: int, vocabulary: int, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.device != device:
        came = f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"logit_bias is {came}, wanted a floating tensor on {device}")
    if value.shape not in ((vocabulary,), (batch, vocabulary)):
        wanted = f"({vocabulary},) or ({batch}, {vocabulary})"
        raise ValueError(f"logit_bias has shape {tuple(value.shape)}, wanted {wanted}")
    return value.float().contiguous()


def _check_values(
    logits: Tensor,
    seed: int,
    sample_ids: Tensor,
    step: Tensor,
    settings: Tensor,
    prompt_tokens: Tensor | None,
    output_tokens: Tensor | None,
    logit_bias: Tensor | None,
) -> None:
    check_sample_ids(sample_ids)
    if bool(((step < 0) | (step >= 2**32)).any()):
        bad = step[(step < 0) | (step >= 2**32)][0]
        raise ValueError(f"step holds {int(bad)}, wanted 0 to 2**32 - 1")
    inside = (settings >= _LOWEST.to(settings.device)) & (settings <= _HIGHEST.to(settings.device))
    if not bool(inside.all()):
        row, column = (int(i) for i in (~inside).nonzero()[0])
        name, low, high, _ = _SETTINGS[column]
        raise ValueError(f"{name} holds {settings[row, column].item():g}, wanted {low:g} to {high:g}")
    for name, tokens in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
        if tokens is not None and bool(((tokens < -1) | (tokens >= logits.shape[1])).any()):
            bad = tokens[(tokens < -1) | (tokens >= logits.shape[1])][0]
            raise ValueError(f"{name} holds {int(bad)}, wanted -1 (none) to {logits.shape[1] - 1}")
    if logit_bias is not None and not bool((logit_bias < torch.inf).all()):
        bad = logit_bias[~(logit_bias < torch.inf)][0]
        raise ValueError(f"logit_bias holds {bad.item()}, wanted finite numbers or -inf")


def _fake(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch = logits.shape[0]
    return logits.new_empty(batch, dtype=torch.int64), logits.new_empty(batch, dtype=torch.float32)


def _raising(run: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Rows from which nothing can be drawn come back with a negative token."""

    def checked(*arguments: Any) -> tuple[Tensor, Tensor]:
        token, log_prob = run(*arguments)
        if bool((token < 0).any()):
            row = int((token < 0).nonzero()[0])
            if int(token[row]) == reference.HAS_NAN:
                raise ValueError(f"logits[{row}] holds NaN, wanted numbers")
            raise ValueError(
                f"logits[{row}] has no token above -inf (with its logit_bias), wanted one at least"
            )
        return token, log_prob

    return checked


def _reference(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast(logits.device.type, enabled=False):
        return reference.sample_logits(logits, *rest)


def _native(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    token, log_prob = _fake(logits)
    torch.ops.fastgen_native.sample_logits.default(token, log_prob, logits.float(), *rest)
    return token, log_prob


def _triton(
    logits: Tensor,
    seed: int,
    sample_ids: Tensor,
    step: Tensor,
    settings: Tensor,
    prompt_tokens: Tensor | None,
    output_tokens: Tensor | None,
    logit_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import sample_logits as kernels  # noqa: PLC0415  triton is optional

    raw = logits.float()
    z = raw
    if prompt_tokens is not None or output_tokens is not None or logit_bias is not None:
        z = raw.clamp(max=reference.LARGEST)  # few numbers change: PyTorch's scatter finds them
        penalties = list(settings.unbind(1)[5:])
        z = reference.penalized(z, penalties, prompt_tokens, output_tokens, logit_bias)
    return kernels.sample_logits(raw, z, seed, sample_ids, step, settings, Stream.TOKEN)


_call = register(
    Op(
        name="sample_logits",
        schema="(Tensor logits, SymInt seed, Tensor sample_ids, Tensor step, Tensor settings,"
        " Tensor? prompt_tokens, Tensor? output_tokens, Tensor? logit_bias) -> (Tensor, Tensor)",
        fake=_fake,
        implementations={
            "reference": _raising(_reference),
            "native": _raising(_native),
            "triton": _raising(_triton),
        },
        check_values=_check_values,
    )
)

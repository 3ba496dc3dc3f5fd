"""Prompts in, texts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from fastgen.generation.beam import BeamSearch, beam_search
from fastgen.generation.cache import PagedCache
from fastgen.generation.row import Generation, Row
from fastgen.generation.sampling import Settings, settings_of
from fastgen.generation.scheduler import Scheduler
from fastgen.generation.speculative import drafter_of
from fastgen.generation.stopping import TextStream
from fastgen.generation.tokenizer import Tokenizer
from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import PAGE
from fastgen.random import check_int, resolve_seed

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""A text, its tokens, or a chat: messages {"role": "user", "content": "..."}."""

BATCH_SIZE = 32
PASS_TOKENS = 512
DRAFT_TOKENS = 8


def prompts_of(given: Prompt | Sequence[Prompt], tokenizer: Tokenizer | None) -> list[list[int]]:
    """The tokens of one prompt or of several.

    Raises:
        TypeError, ValueError: a prompt is none of the three kinds, is empty, or needs a tokenizer that the
            model has not.
    """
    if isinstance(given, Tensor):
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise TypeError(f"prompts is {given!r}, wanted a text, tokens, messages, or a list of such")
    one = isinstance(given, str) or (len(given) > 0 and isinstance(given[0], int | Mapping))
    return [_tokens(i, prompt, tokenizer) for i, prompt in enumerate([given] if one else given)]


def _tokens(index: int, prompt: Any, tokenizer: Tokenizer | None) -> list[int]:
    kinds = "wanted a text, tokens, or messages {'role', 'content'}"
    if isinstance(prompt, Tensor):
        prompt = prompt.tolist()
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise TypeError(f"prompt {index} is {prompt!r}, {kinds}")
    if isinstance(prompt, str) or (len(prompt) and isinstance(prompt[0], Mapping)):
        if tokenizer is None:
            raise ValueError(f"prompt {index} is text, but this model has no tokenizer; give tokens")
        tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.chat(prompt)
    elif all(isinstance(token, int) and not isinstance(token, bool) for token in prompt):
        tokens = list(prompt)
    else:
        raise TypeError(f"prompt {index} is {prompt!r}, {kinds}")
    if not tokens and tokenizer is not None and tokenizer.begin_token is not None:
        return [tokenizer.begin_token]
    if not tokens and prompt and isinstance(prompt, str):
        raise ValueError(f"prompt {index} is {prompt!r}, of which the model's tokenizer knows no character")
    if not tokens:
        raise ValueError(f"prompt {index} is empty, wanted at least one token")
    return tokens


def generate(
    weights: TransformerWeights,
    tokenizer: Tokenizer | None,
    prompts: list[list[int]],
    *,
    max_new_tokens: int = 128,
    seed: int | None = 0,
    n: int = 1,
    sample_ids: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    log_probs: bool = False,
    on_text: Callable[[int, str], None] | None = None,
    batch_size: int = BATCH_SIZE,
    pass_tokens: int = PASS_TOKENS,
    cache_positions: int | None = None,
    draft: str | TransformerWeights | None = None,
    draft_tokens: int = DRAFT_TOKENS,
    beams: int | None = None,
    length_penalty: float = 1.0,
    **settings: Any,
) -> list[Generation]:
    """See `fastgen.models.Transformer.generate`; prompts as `prompts_of` returns them."""
    stop = _stops(stop)
    if beams is not None:
        given = {"stop": stop, "on_text": on_text, "draft": draft, "sample_ids": sample_ids} | settings
        rows = _with_beams(
            weights, tokenizer, prompts, max_new_tokens, n, beams, length_penalty, batch_size, given
        )
        return [_result(row, row.index // n, tokenizer, log_probs) for row in rows]
    rows = _rows(
        weights, tokenizer, prompts, max_new_tokens, n, sample_ids, stop, on_text is not None, settings
    )
    for row in _run(
        weights, rows, resolve_seed(seed), batch_size, pass_tokens, cache_positions, draft, draft_tokens
    ):
        if on_text is not None and row.piece:
            on_text(row.index, row.piece)
    return [_result(row, row.index // n, tokenizer, log_probs) for row in rows]


def stream(
    weights: TransformerWeights,
    tokenizer: Tokenizer | None,
    prompt: list[int],
    *,
    max_new_tokens: int = 128,
    seed: int | None = 0,
    sample_id: int = 0,
    stop: str | Sequence[str] = (),
    pass_tokens: int = PASS_TOKENS,
    draft: str | TransformerWeights | None = None,
    draft_tokens: int = DRAFT_TOKENS,
    **settings: Any,
) -> Iterator[str]:
    """See `fastgen.models.Transformer.stream`."""
    stop = _stops(stop)
    rows = _rows(weights, tokenizer, [prompt], max_new_tokens, 1, [sample_id], stop, True, settings)
    for row in _run(weights, rows, resolve_seed(seed), 1, pass_tokens, None, draft, draft_tokens):
        if row.piece:
            yield row.piece


def _rows(
    weights: TransformerWeights,
    tokenizer: Tokenizer | None,
    prompts: list[list[int]],
    max_new_tokens: int,
    n: int,
    sample_ids: Sequence[int] | None,
    stop: tuple[str, ...],
    streaming: bool,
    settings: dict[str, Any],
) -> list[Row]:
    """One row for each copy of each prompt, in order."""
    for name, value in (("max_new_tokens", max_new_tokens), ("n", n)):
        check_int(name, value)
        if value < 1:
            raise ValueError(f"{name} is {value}, wanted at least 1")
    if tokenizer is None and (stop or streaming):
        raise ValueError("this model has no tokenizer, so there is no text to stop at or to stream")
    ids = list(range(len(prompts) * n)) if sample_ids is None else _ids(sample_ids)
    if len(ids) != len(prompts) * n:
        raise ValueError(f"sample_ids has {len(ids)} ids, wanted {len(prompts) * n}, one for each sample")
    ends = () if tokenizer is None else tokenizer.end_tokens
    rows = []
    each = settings_of(len(prompts), settings, weights.vocabulary)
    for i, (prompt, of_prompt) in enumerate(zip(prompts, each, strict=True)):
        limit = _limit(weights, i, prompt, max_new_tokens)
        for copy in range(n):
            text = TextStream(tokenizer, stop) if tokenizer is not None and (stop or streaming) else None
            index = i * n + copy
            rows.append(Row(index, prompt, limit, ids[index], of_prompt, ends, text))
    return rows


def _with_beams(
    weights: TransformerWeights,
    tokenizer: Tokenizer | None,
    prompts: list[list[int]],
    max_new_tokens: int,
    n: int,
    beams: int,
    length_penalty: float,
    batch_size: int,
    others: dict[str, Any],
) -> list[Row]:
    """The n best rows of each prompt that a search with beams finds."""
    for name, value in (
        ("beams", beams),
        ("max_new_tokens", max_new_tokens),
        ("n", n),
        ("batch_size", batch_size),
    ):
        check_int(name, value)
        if value < 1:
            raise ValueError(f"{name} is {value}, wanted at least 1")
    if n > beams:
        raise ValueError(f"n is {n}, wanted at most beams = {beams}, since a search ends with so many")
    if not isinstance(length_penalty, int | float):
        raise TypeError(f"length_penalty is {length_penalty!r}, wanted a number")
    for name, value in others.items():
        if value is not None and value != ():
            raise ValueError(f"{name} is {value!r}, but a search with beams draws nothing: leave it out")
    ends = () if tokenizer is None else tuple(tokenizer.end_tokens)
    limits = [_limit(weights, i, prompt, max_new_tokens) for i, prompt in enumerate(prompts)]
    searches = [BeamSearch(beams, limit, ends, length_penalty) for limit in limits]
    if prompts:
        beam_search(weights, prompts, searches, batch_size)
    return [
        Row(i * n + place, prompts[i], limits[i], i * n + place, Settings(), ends, tokens=list(found.tokens),
            log_probs=list(found.log_probs), finish_reason=found.finish_reason)
        for i, search in enumerate(searches)
        for place, found in enumerate(search.ended[:n])
    ]  # fmt: skip


def _stops(given: str | Sequence[str]) -> tuple[str, ...]:
    texts = given if isinstance(given, list | tuple | set) else [given]
    if any(not isinstance(text, str) or not text for text in texts):
        raise ValueError(f"stop is {given!r}, wanted a string or several, none of them empty")
    return tuple(texts)


def _ids(given: Sequence[int] | Tensor) -> list[int]:
    if not isinstance(given, Tensor | Sequence):
        raise TypeError(f"sample_ids is {given!r}, wanted a list of ints")
    ids = given.tolist() if isinstance(given, Tensor) else list(given)
    for i in ids:
        check_int("an id of sample_ids", i)
    return ids


def _limit(weights: TransformerWeights, index: int, prompt: list[int], max_new_tokens: int) -> int:
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


def _run(
    weights: TransformerWeights,
    rows: list[Row],
    seed: int,
    batch_size: int,
    pass_tokens: int,
    cache_positions: int | None,
    draft: str | TransformerWeights | None,
    draft_tokens: int,
) -> Iterator[Row]:
    """Give each row each time it has got a token."""
    counts = (("batch_size", batch_size), ("pass_tokens", pass_tokens), ("draft_tokens", draft_tokens))
    for name, value in counts:
        check_int(name, value)
        if value < 1:
            raise ValueError(f"{name} is {value}, wanted at least 1")
    if cache_positions is not None:
        check_int("cache_positions", cache_positions)
    needed = sorted((-(-row.positions // PAGE) for row in rows), reverse=True)
    pages = sum(needed[:batch_size]) if cache_positions is None else -(-cache_positions // PAGE)
    scheduler = Scheduler(
        weights, PagedCache(weights, pages), seed=seed, batch_size=batch_size, pass_tokens=pass_tokens,
        drafter=drafter_of(draft, weights.vocabulary, rows, seed=seed, batch_size=batch_size),
        draft_tokens=draft_tokens,
    )  # fmt: skip
    for row in rows:
        scheduler.add(row)
    try:
        yield from scheduler.run()
    finally:
        scheduler.close()


def _result(row: Row, prompt: int, tokenizer: Tokenizer | None, log_probs: bool) -> Generation:
    text = None
    if row.stream is not None:
        text = row.stream.text
    elif tokenizer is not None:
        ended = row.finish_reason == "end"
        text = tokenizer.decode(row.tokens[:-1] if ended else row.tokens)
    return Generation(
        text=text,
        tokens=row.tokens,
        log_probs=row.log_probs if log_probs else None,
        finish_reason=row.finish_reason or "length",
        prompt=prompt,
        prompt_tokens=len(row.prompt),
        sample_id=row.sample_id,
    )

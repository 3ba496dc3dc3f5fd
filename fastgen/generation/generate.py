"""Prompts in, texts out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastgen.generation.beam import BeamSearch, Hypothesis, beam_search
from fastgen.generation.cache import PagedCache
from fastgen.generation.options import (
    as_id,
    check_beams,
    check_settings,
    ids_of,
    limit_of,
    text_of,
)
from fastgen.generation.row import Generation, Row
from fastgen.generation.sampling import settings_of
from fastgen.generation.scheduler import Scheduler
from fastgen.generation.speculative import drafter_of
from fastgen.generation.stopping import TextStream
from fastgen.generation.tokenizer import Tokenizer
from fastgen.ops import TransformerWeights
from fastgen.ops.transformer import PAGE
from fastgen.random import as_int, resolve_seed

BATCH_SIZE = 32
PASS_TOKENS = 512
DRAFT_TOKENS = 8


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
    pass_tokens: int | None = None,
    cache_positions: int | None = None,
    draft: str | TransformerWeights | None = None,
    draft_tokens: int | None = None,
    beams: int | None = None,
    length_penalty: float | None = None,
    **settings: Any,
) -> list[Generation]:
    """See `fastgen.models.Transformer.generate`; prompts as `prompts_of` returns them."""
    check_settings(generate, settings)
    max_new_tokens, n = as_int("max_new_tokens", max_new_tokens, 1), as_int("n", n, 1)
    batch_size = as_int("batch_size", batch_size, 1)
    if on_text is not None and not callable(on_text):
        raise TypeError(f"on_text is {on_text!r}, wanted a function of an index and a text")
    text = text_of(tokenizer, stop, on_text is not None)
    if beams is not None:
        given = {"sample_ids": sample_ids, "on_text": on_text, "pass_tokens": pass_tokens, "draft": draft}
        given |= {"cache_positions": cache_positions, "draft_tokens": draft_tokens}
        beams = as_int("beams", beams, 1)
        check_beams(beams, n, batch_size, given | settings)
        searches = _searches(
            weights, tokenizer, prompts, max_new_tokens, beams, length_penalty, text, settings
        )
        if prompts:
            beam_search(weights, prompts, searches, batch_size)
        found = [
            (i, place, h) for i, search in enumerate(searches) for place, h in enumerate(search.ended[:n])
        ]
        rows = [_row(i * n + place, searches[i], hypothesis) for i, place, hypothesis in found]
        return [_result(row, row.index // n, tokenizer, log_probs) for row in rows]
    if length_penalty is not None:
        raise ValueError(
            f"length_penalty is {length_penalty!r}, but without beams it ranks nothing: leave it out"
        )
    rows = _rows(weights, tokenizer, prompts, max_new_tokens, n, sample_ids, text, settings)
    scheduler = _scheduler(weights, rows, seed, batch_size, pass_tokens, cache_positions, draft, draft_tokens)
    for row in _run(scheduler):
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
    pass_tokens: int | None = None,
    draft: str | TransformerWeights | None = None,
    draft_tokens: int | None = None,
    **settings: Any,
) -> Iterator[str]:
    """See `fastgen.models.Transformer.stream`; whatever is wrong is said here, before the first piece."""
    check_settings(stream, settings, elsewhere=generate)
    max_new_tokens, sample_id = as_int("max_new_tokens", max_new_tokens, 1), as_id("sample_id", sample_id)
    text = text_of(tokenizer, stop, True)
    rows = _rows(weights, tokenizer, [prompt], max_new_tokens, 1, [sample_id], text, settings)
    scheduler = _scheduler(weights, rows, seed, 1, pass_tokens, None, draft, draft_tokens)
    return (row.piece for row in _run(scheduler) if row.piece)


def _rows(
    weights: TransformerWeights,
    tokenizer: Tokenizer | None,
    prompts: list[list[int]],
    max_new_tokens: int,
    n: int,
    sample_ids: Sequence[int] | None,
    text: TextStream | None,
    settings: dict[str, Any],
) -> list[Row]:
    """One row for each copy of each prompt, in order."""
    ids = list(range(len(prompts) * n)) if sample_ids is None else ids_of(sample_ids)
    if len(ids) != len(prompts) * n:
        raise ValueError(f"sample_ids has {len(ids)} ids, wanted {len(prompts) * n}, one for each sample")
    ends = () if tokenizer is None else tokenizer.end_tokens
    rows = []
    each = settings_of(len(prompts), settings, weights.vocabulary)
    for i, (prompt, of_prompt) in enumerate(zip(prompts, each, strict=True)):
        limit = limit_of(weights, i, prompt, max_new_tokens)
        for index in range(i * n, (i + 1) * n):
            mine = None if text is None else text.copy()
            rows.append(Row(index, prompt, limit, ids[index], of_prompt, ends, mine))
    return rows


def _searches(
    weights: TransformerWeights,
    tokenizer: Tokenizer | None,
    prompts: list[list[int]],
    max_new_tokens: int,
    beams: int,
    length_penalty: float | None,
    text: TextStream | None,
    settings: dict[str, Any],
) -> list[BeamSearch]:
    """A search for each prompt, which has not begun."""
    penalty = 1.0 if length_penalty is None else length_penalty
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not math.isfinite(penalty):
        raise TypeError(f"length_penalty is {length_penalty!r}, wanted a finite number")
    ends = () if tokenizer is None else tuple(tokenizer.end_tokens)
    each = settings_of(len(prompts), settings, weights.vocabulary)
    return [
        BeamSearch(beams, limit_of(weights, i, prompt, max_new_tokens), ends, penalty, its, prompt,
                   [Hypothesis(text=text)])
        for i, (prompt, its) in enumerate(zip(prompts, each, strict=True))
    ]  # fmt: skip


def _row(index: int, search: BeamSearch, found: Hypothesis) -> Row:
    """What a search has found, as a row that is finished."""
    return Row(
        index, list(search.prompt), search.limit, index, search.settings, search.end_tokens, found.text,
        tokens=list(found.tokens), log_probs=list(found.log_probs), finish_reason=found.finish_reason,
    )  # fmt: skip


def _scheduler(
    weights: TransformerWeights,
    rows: list[Row],
    seed: int | None,
    batch_size: int,
    pass_tokens: int | None,
    cache_positions: int | None,
    draft: str | TransformerWeights | None,
    draft_tokens: int | None,
) -> Scheduler:
    """What runs these rows, which wait in it."""
    counts = {"pass_tokens": pass_tokens, "cache_positions": cache_positions, "draft_tokens": draft_tokens}
    pass_tokens, cache_positions, draft_tokens = (
        None if value is None else as_int(name, value, 1) for name, value in counts.items()
    )
    if draft is None and draft_tokens is not None:
        raise ValueError(
            f"draft_tokens is {draft_tokens}, but without draft nothing is guessed: leave it out"
        )
    seed = resolve_seed(seed)
    needed = sorted((-(-row.positions // PAGE) for row in rows), reverse=True)
    pages = sum(needed[:batch_size]) if cache_positions is None else -(-cache_positions // PAGE)
    scheduler = Scheduler(
        weights, PagedCache(weights, pages), seed=seed, batch_size=batch_size,
        pass_tokens=PASS_TOKENS if pass_tokens is None else pass_tokens,
        drafter=drafter_of(draft, weights.vocabulary, rows, seed=seed, batch_size=batch_size),
        draft_tokens=DRAFT_TOKENS if draft_tokens is None else draft_tokens,
    )  # fmt: skip
    for row in rows:
        scheduler.add(row)
    return scheduler


def _run(scheduler: Scheduler) -> Iterator[Row]:
    """Give each row each time it has got a token."""
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

"""Many prompts through a language model: one JSON object a line, taken up again after a kill."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from fastgen import files
from fastgen.generation import Generation, Prompt
from fastgen.models import Transformer
from fastgen.random import resolve_seed
from fastgen.sampling.manifest import identity

BATCHES = 4  # batches between two writes: texts of one of them may take the places of those that end early
RUN = ".run.json"


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """The prompts of a file: each line that is not blank, or of a .jsonl file each line's value.

    Such a value is a text, a list of tokens, a list of messages, or an object that has one under "prompt" or
    "messages".

    Raises:
        ValueError: there is no prompt, or a line is none of these.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    lines = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise ValueError(f"{path} has no line with a prompt")
    if path.suffix != ".jsonl":
        return list(lines.values())
    return [_prompt(path, number, line) for number, line in lines.items()]


def _prompt(path: Path, number: int, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
    if isinstance(value, dict):
        value = value.get("prompt", value.get("messages"))
    if not isinstance(value, str | list):
        raise ValueError(f"{path}, line {number} is {line!r}, wanted a text or an object with 'prompt'")
    return value


def write_texts(
    model: Transformer,
    prompts: Sequence[Prompt],
    out: str | os.PathLike[str] | None = None,
    *,
    n: int = 1,
    seed: int | None = 0,
    batch_size: int = 32,
    progress: bool = True,
    **options: Any,
) -> int:
    """Write n continuations of each prompt as lines {"sample", "prompt", "text", "tokens", "finish_reason"}.

    Copy c of prompt i has the sample id i n + c, and is the same in every run with this seed. Lines come in
    the order of ids. With `out` a killed run is taken up by the same call after the last whole line.

    Args:
        model: with a tokenizer, or lines have no text.
        prompts: texts, lists of tokens or of messages.
        out: file, which gets a second one beside it, `out`.run.json, that says what decided its lines; None
            writes to standard output.
        n: continuations of each prompt, at least 1.
        seed: 64 bits; None takes a seed from torch's default generator.
        batch_size: sequences that run at once; changes no text.
        progress: show a progress bar.
        options: of `Transformer.generate`, such as max_new_tokens and temperature.

    Returns:
        How many lines were written now.

    Raises:
        TypeError, ValueError: an argument is not as said above, or `out` is damaged or another run's.
        OSError: `out` cannot be written to.
        RuntimeError: another process is writing to `out`.
    """
    for name, value in (("n", n), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, wanted an int of at least 1")
    if "beams" in options:
        raise ValueError("beams goes with Transformer.generate, not with lines of samples: leave it out")
    seed = resolve_seed(seed)
    run = identity(model, seed=seed, options=options | {"n": n}, first=0, shard_size=1, format="jsonl")
    with _lines(None if out is None else Path(out), run, prompts, n) as (file, done):
        total = len(prompts) * n
        ids = range(done, total)
        with tqdm(total=total, initial=done, unit="text", disable=not progress) as bar:
            for start in range(0, len(ids), BATCHES * batch_size):
                part = ids[start : start + BATCHES * batch_size]
                given = [prompts[i // n] for i in part]
                found = model.generate(given, seed=seed, sample_ids=part, batch_size=batch_size, **options)
                for prompt, generation in zip(given, found, strict=True):
                    file.write(_line(prompt, generation) + "\n")
                file.flush()
                bar.update(len(part))
    return len(ids)


def _line(prompt: Prompt, found: Generation) -> str:
    value: dict[str, Any] = {"sample": found.sample_id, "prompt": prompt, "text": found.text}
    value |= {"tokens": found.tokens, "finish_reason": found.finish_reason}
    if found.log_probs is not None:
        value["log_probs"] = found.log_probs
    return json.dumps(value, ensure_ascii=False)


@contextlib.contextmanager
def _lines(
    path: Path | None, run: dict[str, Any], prompts: Sequence[Prompt], n: int
) -> Iterator[tuple[IO[str], int]]:
    """What to write to, and how many lines of this run are there already."""
    if path is None:
        yield sys.stdout, 0
        return
    files.make_directory(path.parent)
    with path.open("a+", encoding="utf-8", newline="\n") as file, files.exclusive(path):
        beside = path.with_name(path.name + RUN)
        whole = _whole_lines(path)
        if whole and not beside.exists():
            raise ValueError(f"{path} is there, but no {beside.name}, so it is not a file of fastgen's")
        if whole:
            files.check_run(path, files.read_json(beside), run)
        done = _done(path, whole, prompts, n)
        files.write_json(beside, run)
        file.truncate(sum(len(line) for line in whole))  # a line that was being written is written again
        yield file, done


def _whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _done(path: Path, lines: list[bytes], prompts: Sequence[Prompt], n: int) -> int:
    """How many lines there are; ValueError unless they are the first ones of these prompts."""
    for number, line in enumerate(lines):
        try:
            value = json.loads(line)
            mine = value["sample"] == number and value["prompt"] == prompts[number // n]
        except (ValueError, KeyError, TypeError, IndexError):
            mine = False
        if not mine:
            raise ValueError(
                f"{path}, line {number + 1} is not sample {number} of these prompts; give another file"
            )
    return len(lines)

"""Many prompts through a language model: one JSON object a line, taken up again after a kill."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from torch import Tensor
from tqdm import tqdm

from fastgen import files
from fastgen.generation import SETTINGS, Generation, Prompt
from fastgen.models import Transformer
from fastgen.random import as_int, resolve_seed
from fastgen.sampling.manifest import identity

BATCHES = 4  # batches between two writes: texts of one of them may take the places of those that end early
RUN = ".run.json"


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """The prompts of a file: each line that is not blank, or of a .jsonl file each line's value.

    Such a value is a text, a list of tokens, a list of messages, or an object that has one under "prompt" or
    "messages" and nothing else.

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
        unknown = next((key for key in value if key not in ("prompt", "messages")), None)
        if unknown is not None:
            raise ValueError(f"{path}, line {number} has {unknown!r}, wanted 'prompt' or 'messages' alone")
        if len(value) > 1:
            raise ValueError(f"{path}, line {number} has 'prompt' and 'messages', wanted one of them")
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
    the order of ids. With `out` a killed run is taken up by the same call after the last whole line; more
    prompts may stand behind those that were there. With `beams` the lines of a prompt are its n best, best
    first.

    Args:
        model: with a tokenizer, or lines have no text.
        prompts: texts, lists of tokens or of messages.
        out: file, which gets a second one beside it, `out`.run.json, that says what decided its lines; None
            writes to standard output.
        n: continuations of each prompt, at least 1.
        seed: 64 bits; None takes a seed from torch's default generator.
        batch_size: sequences that run at once; changes no text.
        progress: show a progress bar.
        options: of `Transformer.generate`, such as max_new_tokens and temperature; settings of sampling may
            be lists or tensors of one for each prompt.

    Returns:
        How many lines were written now.

    Raises:
        TypeError, ValueError: an argument is not as said above, or `out` is damaged or another run's.
        OSError: `out` cannot be written to.
        RuntimeError: another process is writing to `out`.
    """
    n, batch_size = as_int("n", n, 1), as_int("batch_size", batch_size, 1)
    options = {k: v.tolist() if k in SETTINGS and isinstance(v, Tensor) else v for k, v in options.items()}
    each = _by_prompt(options, len(prompts))
    seed = resolve_seed(seed)
    run = identity(model, seed=seed, options=options | {"n": n}, first=0, shard_size=1, format="jsonl")
    parts = _searched if options.get("beams") is not None else _drawn
    count = 0
    with _lines(None if out is None else Path(out), run, prompts, n, each) as (file, done):
        total = len(prompts) * n
        with tqdm(total=total, initial=done, unit="text", disable=not progress) as bar:
            for found in parts(model, prompts, range(done, total), n, seed, batch_size, options, each):
                for sample, generation in found:
                    file.write(_line(sample, prompts[sample // n], generation) + "\n")
                file.flush()
                bar.update(len(found))
                count += len(found)
    return count


def _by_prompt(options: dict[str, Any], prompts: int) -> list[str]:
    """The names of options that have a value for each prompt."""
    each = [name for name in SETTINGS if isinstance(options.get(name), list | tuple)]
    for name in each:
        if len(options[name]) != prompts:
            came = len(options[name])
            raise ValueError(f"{name} has {came} values, wanted one, or one for each of {prompts} prompts")
    return each


def _of(options: dict[str, Any], each: list[str], chosen: Sequence[int]) -> dict[str, Any]:
    """The options of some prompts."""
    return options | {name: [options[name][i] for i in chosen] for name in each}


def _drawn(
    model: Transformer, prompts: Sequence[Prompt], ids: range, n: int, seed: int, batch_size: int,
    options: dict[str, Any], each: list[str],
) -> Iterator[list[tuple[int, Generation]]]:  # fmt: skip
    """The samples of these ids, a few batches at a time."""
    for start in range(0, len(ids), BATCHES * batch_size):
        part = ids[start : start + BATCHES * batch_size]
        of = [i // n for i in part]
        given: dict[str, Any] = {"seed": seed, "sample_ids": part, "batch_size": batch_size}
        found = model.generate([prompts[i] for i in of], **given, **_of(options, each, of))
        yield list(zip(part, found, strict=True))


def _searched(
    model: Transformer, prompts: Sequence[Prompt], ids: range, n: int, seed: int, batch_size: int,
    options: dict[str, Any], each: list[str],
) -> Iterator[list[tuple[int, Generation]]]:  # fmt: skip
    """What searches find that has one of these ids, some prompts at a time."""
    at_once = max(1, BATCHES * batch_size // int(options["beams"]))
    for first in range(ids.start // n, len(prompts), at_once):
        of = range(first, min(first + at_once, len(prompts)))
        given: dict[str, Any] = {"seed": seed, "n": n, "batch_size": batch_size}
        found = model.generate([prompts[i] for i in of], **given, **_of(options, each, of))
        numbered = [(first * n + generation.sample_id, generation) for generation in found]
        yield [(sample, generation) for sample, generation in numbered if sample in ids]


def _line(sample: int, prompt: Prompt, found: Generation) -> str:
    value: dict[str, Any] = {"sample": sample, "prompt": prompt, "text": found.text}
    value |= {"tokens": found.tokens, "finish_reason": found.finish_reason}
    if found.log_probs is not None:
        value["log_probs"] = found.log_probs
    return json.dumps(value, ensure_ascii=False)


@contextlib.contextmanager
def _lines(
    path: Path | None, run: dict[str, Any], prompts: Sequence[Prompt], n: int, each: list[str]
) -> Iterator[tuple[IO[str], int]]:
    """What to write to, and the id from which on samples are missing there."""
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
            there = files.read_json(beside)
            files.check_run(path, there, _cut(run, there, each))
        done = _done(path, whole, prompts, n, gaps=run["options"].get("beams") is not None)
        files.write_json(beside, run)
        file.truncate(sum(len(line) for line in whole))  # a line that was being written is written again
        yield file, done


def _whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _cut(run: dict[str, Any], there: dict[str, Any], each: list[str]) -> dict[str, Any]:
    """A run with no more values for prompts than the one that is there: prompts may have come behind."""
    before, options = there.get("options"), dict(run["options"])
    for name in each:
        if isinstance(before, dict) and isinstance(before.get(name), list):
            options[name] = options[name][: len(before[name])]
    return run | {"options": options}


def _done(path: Path, lines: list[bytes], prompts: Sequence[Prompt], n: int, *, gaps: bool) -> int:
    """The id after that of the last line; ValueError unless they are the first ones of these prompts.

    With `gaps` some may be missing: a search may find less than n.
    """
    done = 0
    for number, line in enumerate(lines):
        try:
            value = json.loads(line)
            sample = value["sample"]
            prompt = json.loads(json.dumps(prompts[sample // n]))  # where a tuple is a list
            mine = (sample == done or (gaps and sample > done)) and value["prompt"] == prompt
        except (ValueError, KeyError, TypeError, IndexError):
            mine = False
        if not mine:
            raise ValueError(
                f"{path}, line {number + 1} is not sample {done} of these prompts; give another file"
            )
        done = sample + 1
    return done

"""The command `fastgen score`."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastgen import models
from fastgen.generation import Prompt
from fastgen.models import likelihood
from fastgen.options import add_device, device_of
from fastgen.sampling.command import WANTED, read_model
from fastgen.sampling.reader import load


class Entry(NamedTuple):
    """A text or its tokens, and what it follows; `shown` is how its line in the output names it."""

    text: Prompt
    prompt: Prompt | None
    shown: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments on `parser`."""
    parser.add_argument("model", metavar="MODEL", help=WANTED.replace(", or ising", ""))
    add_device(parser)
    text = parser.add_argument_group("language models")
    text.add_argument("--text", action="append", default=[], metavar="TEXT", help="may be repeated")
    text.add_argument(
        "--texts", type=Path, metavar="FILE", help="one text a line, or .jsonl, such as fastgen sample writes"
    )
    text.add_argument("--prompt", metavar="TEXT", help="stands before each text, and is not scored")
    text.add_argument("--weights", metavar="FORMAT", help="float32, bfloat16, int8, ... (default the file's)")
    flow = parser.add_argument_group("flows")
    flow.add_argument("--samples", type=Path, metavar="PATH", help=".npy, or a directory of fastgen sample")
    flow.add_argument("--context", type=json.loads, metavar="X", help="a class, or numbers as [1, 2]")


def execute(given: argparse.Namespace) -> int:
    """Print how probable texts are, one JSON object a line, or the mean log density of samples."""
    device = device_of(given.device)
    model = read_model(given.model, given.weights, "MODEL").to(device)
    if isinstance(model, models.Transformer):
        return _texts(model, given)
    if isinstance(model, models.Flow):
        return _samples(model, given)
    raise ValueError(f"MODEL is of class {type(model).__name__}, wanted a language model or a flow")


def _texts(model: models.Transformer, given: argparse.Namespace) -> int:
    _refuse(given, "a flow", "samples", "context")
    entries = [Entry(text, given.prompt, {"text": text}) for text in given.text]
    entries += _read_texts(given.texts, given.prompt) if given.texts else []
    if not entries:
        raise ValueError("there is no text; give --text TEXT or --texts FILE")
    prompts = [entry.prompt for entry in entries if entry.prompt is not None]
    if prompts and len(prompts) < len(entries):
        raise ValueError(f"{len(prompts)} of {len(entries)} texts have a prompt, wanted all or none")
    scores = model.score([entry.text for entry in entries], prompts=prompts or None)
    for entry, score in zip(entries, scores, strict=True):
        found = {"log_prob": score.log_prob, "tokens": len(score.tokens), "perplexity": score.perplexity}
        print(json.dumps(found | entry.shown, ensure_ascii=False))
    log_prob, tokens = sum(s.log_prob for s in scores), sum(len(s.tokens) for s in scores)
    together = f"{log_prob:.6g} nats, perplexity {math.exp(-log_prob / tokens):.6g}"
    print(f"{len(scores)} texts of together {tokens} tokens: {together}", file=sys.stderr)
    return 0


def _read_texts(path: Path, prompt: str | None) -> list[Entry]:
    """The texts of a file: its lines that are not blank, or of a .jsonl file each line's value."""
    lines = {number: line for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1)}
    if path.suffix != ".jsonl":
        return [Entry(line, prompt, {"text": line}) for line in lines.values() if line.strip()]
    return [_entry(f"{path}, line {number}", line, prompt) for number, line in lines.items() if line.strip()]


def _entry(name: str, line: str, prompt: str | None) -> Entry:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if isinstance(value, str | list):
        value = {"tokens" if isinstance(value, list) else "text": value}
    text = value.get("tokens", value.get("text")) if isinstance(value, dict) else None
    if not isinstance(text, str | list):
        raise ValueError(f"{name} is {line!r}, wanted a text, or an object with 'text' or 'tokens'")
    if prompt is not None and value.get("prompt") is not None:
        raise ValueError(f"{name} has a prompt of its own, so --prompt cannot stand before it")
    shown = {key: value[key] for key in ("text", "prompt") if key in value}
    # Of a sample its tokens: its text might be cut otherwise, and lacks the token that ended it.
    return Entry(text, value.get("prompt", prompt), shown)


def _samples(model: models.Flow, given: argparse.Namespace) -> int:
    _refuse(given, "a language model", "text", "texts", "prompt", "weights")
    if given.samples is None:
        raise ValueError("--samples is missing, wanted with a flow")
    x = load(given.samples) if given.samples.is_dir() else _array(given.samples)
    found = likelihood(model, x, given.context)
    nats = f"{found.nats:.6g} nats a sample (standard error {found.error:.2g})"
    print(f"{len(x)} samples: {nats}, {found.bits_per_dimension:.6g} bits a dimension")
    return 0


def _array(path: Path) -> torch.Tensor:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return torch.from_numpy(np.lib.format.open_memmap(path, mode="c"))
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers: {error}") from None


def _refuse(given: argparse.Namespace, goes_with: str, *names: str) -> None:
    """Refuse arguments that would be ignored."""
    for name in names:
        if getattr(given, name) not in (None, []):
            raise ValueError(f"--{name} goes with {goes_with}")

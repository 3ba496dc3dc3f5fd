"""The command `fastgen sample`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import fastgen
from fastgen import models, zoo
from fastgen.generation import Prompt
from fastgen.options import check_names, name_and_value
from fastgen.sampling.manifest import Manifest
from fastgen.sampling.texts import read_prompts, write_texts
from fastgen.sampling.writers import WRITERS

WANTED = "the directory of a saved model, a .gguf file, zoo:NAME, or ising"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments on `parser`."""
    parser.add_argument("model", metavar="MODEL", help=WANTED)
    parser.add_argument("-n", type=int, help="number of samples; of each prompt (default 1) where there are")
    parser.add_argument("--seed", type=int, default=0, help="64 bits; fixes sample i for ever (default 0)")
    parser.add_argument("--out", type=Path, metavar="PATH", help="directory for shards, or file for texts")
    parser.add_argument("--format", choices=sorted(WRITERS), help="of shards (default npy, arrays)")
    parser.add_argument("--batch-size", type=int, help="samples made at once; changes no sample")
    parser.add_argument("--shard-size", type=int, help="samples in a file (default 256)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=name_and_value,
        metavar="NAME=VALUE",
        help="handed to the model, e.g. sweeps=2000 or temperature=0.7; may be repeated",
    )
    text = parser.add_argument_group("language models")
    text.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be repeated")
    text.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line, or .jsonl")
    text.add_argument("--chat", action="store_true", help="a prompt is what a user says to an assistant")
    text.add_argument("--weights", metavar="FORMAT", help="float32, bfloat16, int8, ... (default the file's)")
    ising = parser.add_argument_group("ising")
    ising.add_argument("--size", type=int, help="side of the lattice (default 128)")
    ising.add_argument("--beta", type=float, help="inverse temperature (default the critical one, 0.4407)")


def execute(given: argparse.Namespace) -> int:
    """Make the samples and say where they are."""
    model = _model(given)
    return _texts(model, given) if isinstance(model, models.Transformer) else _shards(model, given)


def _shards(model: Any, given: argparse.Namespace) -> int:
    _refuse(given, "a language model", "prompt", "prompts", "chat", "weights")
    for name, flag in (("n", "-n"), ("out", "--out")):
        if getattr(given, name) is None:
            raise ValueError(f"{flag} is missing, wanted with this model")
    options = dict(given.option)
    check_names(f"{type(model).__name__}.sample", model.sample, options, but=("sample_ids", "seed"))
    if given.beta is not None:
        options["beta"] = given.beta
    chosen = {"shard_size": given.shard_size, "format": given.format}
    out = fastgen.sample(
        model,
        given.n,
        seed=given.seed,
        out=given.out,
        batch_size=given.batch_size,
        **{name: value for name, value in chosen.items() if value is not None},
        **options,
    )
    assert isinstance(out, Path)  # because `out` was given
    manifest = Manifest.read(out)
    shape = " x ".join(map(str, manifest.shape or []))
    print(f"{out}: {manifest.n} samples, each {shape} {manifest.dtype}, in {len(manifest.shards)} shards")
    if manifest.run["format"] == "npy":
        print(f"read them with fastgen.sampling.load({str(out)!r})")
    return 0


def _texts(model: models.Transformer, given: argparse.Namespace) -> int:
    _refuse(given, "arrays", "format", "shard_size")
    prompts: list[Prompt] = [*given.prompt, *(read_prompts(given.prompts) if given.prompts else [])]
    if not prompts:
        raise ValueError("there is no prompt; give --prompt TEXT or --prompts FILE")
    if given.chat:
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    n, options = 1 if given.n is None else given.n, dict(given.option)
    if given.out is None and len(prompts) == n == 1 and given.batch_size is None and "beams" not in options:
        for piece in model.stream(prompts[0], seed=given.seed, **options):
            print(piece, end="", flush=True)
        print()
        return 0
    if given.batch_size is not None:
        options["batch_size"] = given.batch_size
    progress = given.out is not None and sys.stderr.isatty()
    write_texts(model, prompts, given.out, n=n, seed=given.seed, progress=progress, **options)
    if given.out is not None:
        print(f"{given.out}: {n * len(prompts)} texts, one JSON object a line")
    return 0


def _model(given: argparse.Namespace) -> Any:
    """The model that MODEL names: one of fastgen's by its name, or one that was saved."""
    if given.model == "ising":
        size = 128 if given.size is None else given.size
        return models.Ising(size, size)
    _refuse(given, "the model ising alone; use --option NAME=VALUE", "size", "beta")
    path = Path(given.model)
    if path.suffix == ".gguf" or _is_foreign(path):
        return models.Transformer.from_pretrained(path, format=given.weights)
    _refuse(given, "models of other libraries alone", "weights")
    if not (given.model.startswith(zoo.PREFIX) or path.is_dir()):
        raise ValueError(f"MODEL is {given.model!r}, wanted {WANTED}")
    return models.load(given.model)


def _is_foreign(path: Path) -> bool:
    """Whether a directory holds a model as transformers writes it."""
    try:
        return "model_type" in json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _refuse(given: argparse.Namespace, goes_with: str, *names: str) -> None:
    """Refuse arguments that would be ignored."""
    for name in names:
        if getattr(given, name) not in (None, False, []):
            raise ValueError(f"--{name.replace('_', '-')} goes with {goes_with}")

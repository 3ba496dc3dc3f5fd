"""The command `fastgen sample`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import fastgen
from fastgen import models, zoo
from fastgen.generation import Prompt, names_of, stream
from fastgen.options import add_device, check_names, device_of
from fastgen.sampling.arguments import add_options, options_of
from fastgen.sampling.manifest import Manifest
from fastgen.sampling.texts import read_prompts, write_texts
from fastgen.sampling.writers import WRITERS

WANTED = "the directory of a saved model, a .gguf file, zoo:NAME, or ising"
ELSEWHERE = ("seed", "n", "out", "batch_size", "device", "format", "shard_size", "prompts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments on `parser`."""
    parser.add_argument("model", metavar="MODEL", help=WANTED)
    parser.add_argument("-n", type=int, help="number of samples; of each prompt (default 1) where there are")
    parser.add_argument("--seed", type=int, default=0, help="64 bits; fixes sample i for ever (default 0)")
    parser.add_argument("--out", type=Path, metavar="PATH", help="directory for shards, or file for texts")
    parser.add_argument("--format", choices=sorted(WRITERS), help="of shards (default npy, arrays)")
    parser.add_argument("--batch-size", type=int, help="samples made at once; changes no sample")
    parser.add_argument("--shard-size", type=int, help="samples in a file (default 256)")
    add_device(parser)
    text = parser.add_argument_group("language models")
    text.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be repeated")
    text.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line, or .jsonl")
    text.add_argument("--chat", action="store_true", help="a prompt is what a user says to an assistant")
    text.add_argument("--system", metavar="TEXT", help="what the assistant is told first, with --chat")
    text.add_argument("--weights", metavar="FORMAT", help="float32, bfloat16, int8, ... (default the file's)")
    ising = parser.add_argument_group("ising")
    ising.add_argument("--size", type=int, help="side of the lattice (default 128)")
    add_options(parser)


def execute(given: argparse.Namespace) -> int:
    """Make the samples and say where they are."""
    device = device_of(given.device)
    model = _model(given).to(device)
    return _texts(model, given) if isinstance(model, models.Transformer) else _shards(model, given)


def _shards(model: Any, given: argparse.Namespace) -> int:
    _refuse(given, "a language model", "prompt", "prompts", "chat", "system", "weights")
    for name, flag in (("n", "-n"), ("out", "--out")):
        if getattr(given, name) is None:
            raise ValueError(f"{flag} is missing, wanted with this model")
    options: dict[str, Any] = {  # a list on the command line is for all samples
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options_of(given, ELSEWHERE).items()
    }
    check_names(f"{type(model).__name__}.sample", model.sample, options, but=("sample_ids", "seed"))
    chosen = {"shard_size": given.shard_size, "format": given.format}
    out = fastgen.sample(
        model,
        given.n,
        seed=given.seed,
        out=given.out,
        batch_size=given.batch_size,
        device=given.device,
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
    if given.system is not None and not given.chat:
        raise ValueError("--system goes with --chat")
    if given.chat:
        first = [] if given.system is None else [{"role": "system", "content": given.system}]
        prompts = [[*first, {"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    n, options = 1 if given.n is None else given.n, options_of(given, ELSEWHERE)
    if isinstance(options.get("draft"), str) and options["draft"] != "lookup":
        options["draft"] = read_model(options["draft"], None, "--draft").to(given.device)
    alone = given.out is None and len(prompts) == n == 1
    if alone and given.batch_size is None and "log_probs" not in options:
        _print(model, prompts[0], given.seed, options)
        return 0
    if given.batch_size is not None:
        options["batch_size"] = given.batch_size
    progress = given.out is not None and sys.stderr.isatty()
    write_texts(model, prompts, given.out, n=n, seed=given.seed, progress=progress, **options)
    if given.out is not None:
        print(f"{given.out}: {n * len(prompts)} texts, one JSON object a line")
    return 0


def _print(model: models.Transformer, prompt: Prompt, seed: int, options: dict[str, Any]) -> None:
    """One text to the terminal, as it comes where that is possible."""
    if set(options) <= set(names_of(stream)):
        for piece in model.stream(prompt, seed=seed, **options):
            print(piece, end="", flush=True)
        print()
    else:
        print(model.generate([prompt], seed=seed, **options)[0].text)


def _model(given: argparse.Namespace) -> Any:
    """The model that MODEL names: one of fastgen's by its name, or one that was saved."""
    if given.model == "ising":
        size = 128 if given.size is None else given.size
        return models.Ising(size, size)
    _refuse(given, "the model ising alone; use --option NAME=VALUE", "size")
    return read_model(given.model, given.weights, "MODEL")


def read_model(name: str, weights: str | None, argument: str) -> Any:
    """A model that was saved, of this library or of another."""
    path = Path(name)
    if path.suffix == ".gguf" or _is_foreign(path):
        return models.Transformer.from_pretrained(path, format=weights)
    if weights is not None:
        raise ValueError("--weights goes with models of other libraries alone")
    if not (name.startswith(zoo.PREFIX) or path.is_dir()):
        raise ValueError(f"{argument} is {name!r}, wanted {WANTED}")
    return models.load(name)


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

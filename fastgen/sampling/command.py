"""The command `fastgen sample`."""

import argparse
from pathlib import Path
from typing import Any

import fastgen
from fastgen import models, zoo
from fastgen.options import name_and_value
from fastgen.sampling.manifest import Manifest
from fastgen.sampling.writers import WRITERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments on `parser`."""
    parser.add_argument("model", metavar="MODEL", help="directory of a saved model, zoo:NAME, or ising")
    parser.add_argument("-n", type=int, required=True, help="number of samples")
    parser.add_argument("--seed", type=int, default=0, help="64 bits; fixes sample i for ever (default 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for shards and manifest.json")
    parser.add_argument("--format", choices=sorted(WRITERS), default="npy", help="(default npy, arrays)")
    parser.add_argument("--batch-size", type=int, help="samples made at once; changes no sample")
    parser.add_argument("--shard-size", type=int, default=256, help="samples in a file (default 256)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=name_and_value,
        metavar="NAME=VALUE",
        help="handed to the model's sample(), e.g. sweeps=2000; may be repeated",
    )
    ising = parser.add_argument_group("ising")
    ising.add_argument("--size", type=int, help="side of the lattice (default 128)")
    ising.add_argument("--beta", type=float, help="inverse temperature (default the critical one, 0.4407)")


def execute(given: argparse.Namespace) -> int:
    """Make the samples and say where they are."""
    options = dict(given.option)
    if given.beta is not None:
        options["beta"] = given.beta
    out = fastgen.sample(
        _model(given),
        given.n,
        seed=given.seed,
        out=given.out,
        batch_size=given.batch_size,
        shard_size=given.shard_size,
        format=given.format,
        **options,
    )
    assert isinstance(out, Path)  # because `out` was given
    manifest = Manifest.read(out)
    shape = " x ".join(map(str, manifest.shape or []))
    print(f"{out}: {manifest.n} samples, each {shape} {manifest.dtype}, in {len(manifest.shards)} shards")
    if given.format == "npy":
        print(f"read them with fastgen.sampling.load({str(out)!r})")
    return 0


def _model(given: argparse.Namespace) -> Any:
    """The model that MODEL names: one of fastgen's by its name, or one that was saved."""
    if given.model == "ising":
        size = 128 if given.size is None else given.size
        return models.Ising(size, size)
    for name in ("size", "beta"):
        if getattr(given, name) is not None:
            raise ValueError(f"--{name} goes with the model ising alone; use --option {name}=...")
    if not (given.model.startswith(zoo.PREFIX) or Path(given.model).is_dir()):
        raise ValueError(
            f"MODEL is {given.model!r}, wanted the directory of a saved model, zoo:NAME, or ising"
        )
    return models.load(given.model)

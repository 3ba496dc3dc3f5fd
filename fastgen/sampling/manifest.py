"""`manifest.json`: which run a directory belongs to, and which of its shards are complete."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

import fastgen
from fastgen import files
from fastgen.sampling.writers import WRITERS, digest, shard_path, stored

FILE = "manifest.json"
FORMAT = 1
RUN: dict[str, Any] = {
    "fastgen": str,
    "model": str,
    "fingerprint": str,
    "seed": int,
    "options": dict,
    "first": int,
    "shard_size": int,
    "format": str,
}
REST: dict[str, Any] = {"n": int, "dtype": str | None, "shape": list | None, "shards": list}
SHARD: dict[str, Any] = {"index": int, "first": int, "count": int, "sha256": str}
PAUSE = 10  # after writing the manifest, as a multiple of the time that took: its length grows with the run


@dataclasses.dataclass
class Manifest:
    """`run` is what decides the samples; `shards` lists the complete ones; `due` is when to write them down.

    A shard covers shard_size ids, the last one maybe fewer, and is complete before it is listed. Shards do
    not depend on one another: any of them can be made at any time.
    """

    directory: Path
    run: dict[str, Any]
    n: int
    dtype: str | None = None
    shape: list[int] | None = None
    shards: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    due: float = 0.0

    def missing(self) -> list[tuple[int, range]]:
        """Index and ids of every shard that is not complete."""
        listed = {shard["index"] for shard in self.shards}
        first, size = self.run["first"], self.run["shard_size"]
        ids, count = range(first, first + self.n), -(-self.n // size)
        return [(i, ids[i * size : (i + 1) * size]) for i in range(count) if i not in listed]

    def add(self, index: int, ids: range, samples: torch.Tensor) -> None:
        """Write a shard, then list it; in the file at once, or with others that take little time."""
        samples = stored(samples)
        dtype, shape = str(samples.dtype).removeprefix("torch."), list(samples.shape[1:])
        if self.shards and (self.dtype, self.shape) != (dtype, shape):
            raise ValueError(
                f"the samples are {dtype} {shape}, in {self.directory} they are {self.dtype} {self.shape}"
            )
        path = shard_path(self.directory, self.run["format"], index)
        WRITERS[self.run["format"]](path, samples, ids.start)
        self.dtype, self.shape = dtype, shape
        entry = {"index": index, "first": ids.start, "count": len(ids), "sha256": digest(path)}
        self.shards.append(entry)
        begun = time.monotonic()
        if begun >= self.due:
            self.write()
            now = time.monotonic()
            self.due = now + PAUSE * (now - begun)

    def verify(self) -> None:
        """Raise ValueError for a listed shard whose bytes changed; take those that are gone off the list."""
        present = []
        for shard in self.shards:
            path = shard_path(self.directory, self.run["format"], shard["index"])
            if not path.exists():
                continue
            if digest(path) != shard["sha256"]:
                raise ValueError(
                    f"{path} is not what was written (its sha256 differs); remove it to have it made again"
                )
            present.append(shard)
        self.shards = present

    def write(self) -> None:
        """Replace the file."""
        self.shards.sort(key=lambda shard: shard["index"])
        rest = {"n": self.n, "dtype": self.dtype, "shape": self.shape, "shards": self.shards}
        files.write_json(self.directory / FILE, self.run | rest)

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read the manifest of a directory. FileNotFoundError: missing. ValueError: invalid."""
        value = files.read_json(directory / FILE)
        if value.get("format_version") != FORMAT:
            came = value.get("format_version")
            raise ValueError(f"{directory / FILE} has format version {came!r}, this fastgen reads {FORMAT}")
        files.check_fields(directory / FILE, value, RUN | REST)
        for shard in value["shards"]:
            files.check_fields(directory / FILE, shard, SHARD)
        for key in ("n", "shard_size"):
            if value[key] < 1:
                raise ValueError(f"{directory / FILE}: {key!r} is {value[key]}, wanted at least 1")
        rest = {key: value.pop(key) for key in REST}
        return cls(directory, value, **rest)


def identity(
    model: Any, *, seed: int, options: dict[str, Any], first: int, shard_size: int, format: str
) -> dict[str, Any]:
    """All that decides the bytes of the shards."""
    return {
        "format_version": FORMAT,
        "fastgen": fastgen.__version__,
        "model": type(model).__name__,
        "fingerprint": fingerprint(model),
        "seed": seed,
        "options": {name: _described(f"option {name}", value) for name, value in sorted(options.items())},
        "first": first,
        "shard_size": shard_size,
        "format": format,
    }


def fingerprint(model: Any) -> str:
    """The model's own `fingerprint()`, else sha256 over its class and all that it holds.

    That is every attribute of the object, and for a torch module those of its submodules, parameters and
    buffers. TypeError: an attribute is neither a number, a string, a tensor or a module, nor a list, tuple or
    dict of them, so the model needs a `fingerprint()`; so does one that draws on what is no attribute.
    """
    if callable(getattr(model, "fingerprint", None)):
        return model.fingerprint()
    module = isinstance(model, torch.nn.Module)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers()) if module else {}
    parts = dict(model.named_modules()) if module else {"": model}
    header = {name: [type(part).__qualname__, _attributes(model, part)] for name, part in parts.items()}
    return files.tensors_digest(json.dumps(header, sort_keys=True), tensors)


def _attributes(model: Any, part: Any) -> dict[str, Any]:
    """What `part` of the model holds beyond what every torch module does, as JSON."""
    usual = vars(torch.nn.Module()) if isinstance(part, torch.nn.Module) else {}
    try:
        mine = {key: value for key, value in vars(part).items() if key not in usual}
        return {key: _described(f"attribute {key}", value) for key, value in mine.items()}
    except TypeError as error:
        raise TypeError(f"{type(model).__name__} needs a fingerprint(), a string: {error}") from None


def open_run(directory: Path, run: dict[str, Any], n: int) -> Manifest:
    """Begin a run in a directory without samples, or take up the one that is there if it is the same.

    ValueError: the directory holds something else, another run, or a shard that is not what was written.
    """
    others = [p.name for p in directory.iterdir() if p.suffix != files.PARTIAL and p.name != FILE]
    there = (directory / FILE).exists()
    if others and not there:
        raise ValueError(
            f"{directory} holds {sorted(others)[0]} but no {FILE}; give a new or empty directory"
        )
    manifest = Manifest.read(directory) if there else Manifest(directory, run, n)
    if not (manifest.shards or others):  # a run that failed before its first shard binds nobody
        manifest = Manifest(directory, run, n)
        manifest.write()
        return manifest
    files.check_run(directory, {**manifest.run, "n": max(n, manifest.n)}, {**run, "n": n})
    manifest.verify()
    if n > manifest.n:  # a last shard that was short is made again, longer
        size = run["shard_size"]
        manifest.shards = [shard for shard in manifest.shards if shard["count"] == size]
        manifest.n = n
    manifest.write()
    return manifest


def _described(name: str, value: Any) -> Any:
    """A value as JSON: itself, or the digest of a tensor or module."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_described(name, member) for member in value]
    if isinstance(value, dict):
        return {str(key): _described(name, member) for key, member in value.items()}
    if isinstance(value, torch.Tensor):
        return "sha256:" + files.tensors_digest("", {"": value})
    if isinstance(value, torch.nn.Module):
        return "sha256:" + fingerprint(value)
    came = type(value).__name__
    raise TypeError(
        f"{name} is {came}, wanted numbers, strings, tensors or lists of them, to tell runs apart"
    )

"""Files that are either whole or absent: written aside, flushed to the disk, then renamed.

Everything fastgen writes (models, checkpoints, shards, manifests) goes through this file, so that a run
killed at any moment leaves only complete files behind. A leftover `*.partial` is overwritten by the next run.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import safetensors
import safetensors.torch
import torch

Tensors = Mapping[str, torch.Tensor]

METADATA_KEY, DIGEST_KEY = "fastgen", "sha256"
PARTIAL = ".partial"


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Make `path` a directory that can be written to, parents included; OSError says why it cannot be one."""
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f"probe{PARTIAL}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = f"cannot write to {directory}: {error.strerror}"
        raise type(error)(f"{reason}; give a directory that can be written to") from None
    return directory


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file or directory for this process alone; the lock ends with the process, however it ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another process is writing to {path}; give another {_kind_of(path)}"
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; it takes the place of `path` once the block has ended without an error.

    OSError: it cannot be written (a full disk, say); `path` is then as it was.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}; what was written before is kept") from None
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. FileNotFoundError or ValueError tell which file is missing or not valid."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    return _object(path, text)


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, Any] | None = None) -> None:
    """Write a safetensors file; `metadata` is any JSON object and travels in the file's header.

    So does a checksum of both, by which `read_tensors` finds a byte that changed.
    """
    metadata, tensors = metadata or {}, _unshared(tensors)
    digest = tensors_digest(json.dumps(metadata), tensors)
    # One key, because safetensors writes several in any order.
    header = {METADATA_KEY: json.dumps(metadata | {DIGEST_KEY: digest})}
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        safetensors.torch.save_file(dict(tensors), partial, header)
        partial.chmod(mode)  # safetensors leaves files that only their owner may read


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`: its tensors, on the CPU, and its metadata ({} where it has none).

    FileNotFoundError: missing. ValueError: truncated, no safetensors file, or not what was written; a file
    without a checksum is taken as it is.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safetensors.safe_open(path, "pt") as file:
            # Cloned, because get_tensor gives unaligned views of one memory map.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            header = (file.metadata() or {}).get(METADATA_KEY, "{}")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from None
    metadata = _object(path, header)
    digest = metadata.pop(DIGEST_KEY, None)
    if digest not in (None, tensors_digest(json.dumps(metadata), tensors)):
        raise ValueError(f"{path} is damaged: it is not what was written (its sha256 differs)")
    return tensors, metadata


def check_fields(path: Path, value: Any, wanted: Mapping[str, type | UnionType]) -> None:
    """Raise ValueError unless `value`, read from `path`, is an object with these keys and types of values."""
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {value!r}, wanted an object with {', '.join(wanted)}")
    for key, kind in wanted.items():
        if key not in value:
            raise ValueError(f"{path} lacks the key {key!r}")
        if not isinstance(value[key], kind):
            name = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ValueError(f"{path}: {key!r} is {value[key]!r}, wanted {name}")


def check_tensors(path: Path, found: Tensors, wanted: Tensors) -> None:
    """Raise ValueError unless `found`, read from `path`, has the keys, shapes and kinds of `wanted`."""
    for key in sorted(wanted.keys() - found.keys()):
        raise ValueError(f"{path} lacks the key {key!r}, wanted with shape {tuple(wanted[key].shape)}")
    for key in sorted(found.keys() - wanted.keys()):
        names = ", ".join(sorted(wanted)) or "none"
        raise ValueError(f"{path} has the foreign key {key!r}; wanted are {names}")
    for key, tensor in found.items():
        shape, wanted_shape = tuple(tensor.shape), tuple(wanted[key].shape)
        if shape != wanted_shape:
            raise ValueError(f"{path}: {key!r} has shape {shape}, wanted {wanted_shape}")
        if _kind(tensor) != _kind(wanted[key]):
            raise ValueError(f"{path}: {key!r} is {_kind(tensor)}, wanted {_kind(wanted[key])}")


def check_run(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ValueError unless what decides the run in a file or directory equals what decides this one."""
    keys = [key for key in here if there.get(key) != here[key]]
    if keys:
        differ = "; ".join(f"{key} {there.get(key)!r} there, {here[key]!r} here" for key in keys)
        raise ValueError(f"{path} belongs to another run ({differ}); give another {_kind_of(path)}")


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tensors_digest(header: str, tensors: Tensors) -> str:
    """sha256 over a header and, in the order of their names, each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(header.encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _object(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, wanted an object")
    return value


def _kind_of(path: Path) -> str:
    return "directory" if path.is_dir() else "file"


def _kind(tensor: torch.Tensor) -> str:
    """A model may be stored in another precision, but never as another kind of number."""
    return "floating point" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _unshared(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Contiguous tensors on the CPU, none of which shares memory with another (safetensors refuses those)."""
    result: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        result[key] = value.clone() if storage in seen else value
        seen.add(storage)
    return result

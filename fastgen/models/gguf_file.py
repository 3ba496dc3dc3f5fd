"""GGUF files, mapped into memory: metadata and the places of tensors, every count checked against the file.

Written here because a mapped model should open in a tenth of a second, and a hostile file must not cost more
than that. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_DIMENSIONS = 4

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")

# Type number: name, values in a block, bytes of a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file: `shape` as torch has it (outermost first), `data` its bytes in the map."""

    name: str
    type: str
    shape: tuple[int, ...]
    data: Tensor  # uint8, a view of the map

    def float(self) -> Tensor:
        """Its values in float32; formats of blocks are dequantised by the package gguf."""
        if self.type in _DTYPES:
            return self.data.view(_DTYPES[self.type]).view(self.shape).float()
        try:
            from gguf import GGMLQuantizationType, quants  # noqa: PLC0415  an optional package
        except ImportError:
            raise ModuleNotFoundError(
                f"{self.name} has the format {self.type}; dequantising it needs: pip install 'fastgen[text]'"
            ) from None
        rows = self.data.view(self.shape[0] if len(self.shape) > 1 else 1, -1).numpy()
        values = quants.dequantize(rows, GGMLQuantizationType[self.type])
        return torch.from_numpy(values).float().view(self.shape)


@dataclass(frozen=True)
class GGUFFile:
    """What a file holds: `metadata` by key, `tensors` by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Map a GGUF file and read its header; the tensors' bytes stay on the disk until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no GGUF file, truncated, or says of itself what cannot be.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.stat().st_size < 24:
        raise ValueError(f"{path} is not a GGUF file: it has {path.stat().st_size} bytes")
    # Private: a page that somebody writes to is copied, the file never changes.
    mapped = np.memmap(path, dtype=np.uint8, mode="c")
    try:
        return _Cursor(memoryview(mapped.data), path).read(torch.from_numpy(mapped))
    except (UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


class _Cursor:
    """A place in the header that moves forward and never past the end, however much a count promises."""

    def __init__(self, memory: memoryview, path: Path) -> None:
        self.memory, self.path, self.at, self.size = memory, path, 0, len(memory)

    def read(self, mapped: Tensor) -> GGUFFile:
        if bytes(self.take(4)) != MAGIC:
            raise ValueError(f"{self.path} is not a GGUF file: it begins with {bytes(self.memory[:4])!r}")
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"{self.path} has GGUF version {version}, wanted 2 or 3 (little-endian)")
        tensors, pairs = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.string()
            if key in metadata:
                raise ValueError(f"{self.path} has the key {key!r} twice")
            metadata[key] = self.value(self.number("I"))
        infos = [self.info() for _ in range(tensors)]
        return GGUFFile(self.path, metadata, self.place(infos, metadata, mapped))

    def take(self, count: int) -> memoryview:
        if count > self.size - self.at:
            raise ValueError(f"{self.path} is truncated or damaged: {count} bytes are wanted at {self.at}")
        self.at += count
        return self.memory[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return str(self.take(_LENGTH.unpack(self.take(8))[0]), "utf-8")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"{self.path} is damaged: a value has the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[inner])
            return list(struct.unpack(f"<{count}{_SCALARS[inner]}", self.take(count * width)))
        if inner != _STRING:
            raise ValueError(f"{self.path} has a list of type {inner}, wanted numbers or strings")
        return [self.string() for _ in range(count)]

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of a tensor."""
        name, dimensions = self.string(), self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(
                f"{self.path}: {name!r} has {dimensions} dimensions, wanted 1 to {MAX_DIMENSIONS}"
            )
        shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
        return name, shape, self.number("I"), self.number("Q")

    def place(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], metadata: dict[str, Any], mapped: Tensor
    ) -> dict[str, GGUFTensor]:
        """The tensors in the map; each whole, none over another."""
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise ValueError(f"{self.path} has alignment {alignment!r}, wanted a power of two of at least 8")
        start = -(-self.at // alignment) * alignment
        tensors, end = {}, start
        for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
            if kind not in TYPES:
                raise ValueError(f"{self.path}: {name!r} has the type {kind}, which fastgen does not know")
            word, block, width = TYPES[kind]
            if 0 in shape or shape[-1] % block or offset % alignment or name in tensors:
                raise ValueError(f"{self.path} is damaged: {name!r} {shape} {word} at {offset} cannot be")
            size = math.prod(shape) // block * width
            if start + offset < end or start + offset + size > self.size:
                raise ValueError(f"{self.path} is truncated or damaged: {name!r} {shape} {word} does not fit")
            end = start + offset + size
            tensors[name] = GGUFTensor(name, word, shape, mapped[start + offset : end])
        return tensors

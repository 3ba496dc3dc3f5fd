"""From another library's files to a `Transformer`: what is common to all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastgen.generation.tokenizer import Tokenizer
from fastgen.models.transformer_layers import Matrix
from fastgen.ops import PackedWeight
from fastgen.reference.packed_linear import DTYPES, data_shape

if TYPE_CHECKING:
    from fastgen.models.transformer import Transformer

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, the format to keep it in, its values, its bytes if they run so."""

    shape: tuple[int, ...]
    format: str
    values: Callable[[], Tensor]
    data: Tensor | None = None

    def pack(self, format: str) -> PackedWeight:
        """It as a matrix in a format; its own bytes if that is its own."""
        if self.data is not None and format == self.format:
            return PackedWeight(self.data, format, (self.shape[0], self.shape[1]))
        return PackedWeight.pack(self.values(), format)


@dataclass
class Source:
    """What a file says: arguments of `Transformer`, tensors by the names of its state dict, a tokenizer."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Stored] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None


def read_pretrained(
    cls: type[Transformer], path: Path, *, format: str | None, trainable: bool
) -> Transformer:
    """See `Transformer.from_pretrained`."""
    # Here, because both build on this file.
    from fastgen.models.pretrained_directory import read_directory  # noqa: PLC0415
    from fastgen.models.pretrained_gguf import read_gguf_model  # noqa: PLC0415

    if format is not None and trainable:
        raise ValueError(f"format is {format!r} and trainable is true, wanted one of them: packed is fixed")
    if path.suffix in PICKLES:
        raise ValueError(f"{path} is a pickle, which can run anything when read; wanted safetensors or GGUF")
    if format is not None and format not in DTYPES:
        raise ValueError(f"format is {format!r}, wanted one of {', '.join(DTYPES)}")
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing, wanted a file or directory; nothing is downloaded")
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} holds tensors without their config.json; give its directory {path.parent}")
    source = read_directory(path) if path.is_dir() else read_gguf_model(path)
    return build(cls, source, format, trainable=trainable)


def build(
    cls: type[Transformer], source: Source, format: str | None = None, *, trainable: bool = False
) -> Transformer:
    """The model of a source; arguments as `Transformer.from_pretrained`."""
    formats: dict[str, str] = {} if trainable else _formats(source, format)
    try:
        with torch.device("meta"):
            model = cls(**source.config, formats=formats)
        state = _state(model, source)
        model.load_state_dict(state, strict=True, assign=True)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{source.path} does not hold a whole model: {error}") from None
    model.tokenizer = source.tokenizer
    return model.eval()


def _formats(source: Source, format: str | None) -> dict[str, str]:
    """The format of each matrix: the commonest under "*", others under their names."""
    chosen = {
        name.removesuffix(".weight"): format or stored.format
        for name, stored in source.tensors.items()
        if len(stored.shape) == 2 and name.endswith(".weight")
    }
    words = list(chosen.values())
    common = max(dict.fromkeys(words), key=words.count, default="float32")
    return {"*": common} | {name: word for name, word in chosen.items() if word != common}


def _state(model: Transformer, source: Source) -> dict[str, Tensor]:
    """The model's state dict, filled from the source; everything the model has must be there, and no more."""
    left, state = dict(source.tensors), {}
    matrices = {name: module for name, module in model.named_modules() if isinstance(module, Matrix)}

    def take(name: str, shape: tuple[int, ...]) -> Stored:
        if name not in left:
            raise ValueError(f"{source.path} lacks the tensor {name!r}, wanted with shape {shape}")
        stored = left.pop(name)
        if stored.shape != shape:
            raise ValueError(f"{source.path}: {name!r} has shape {stored.shape}, wanted {shape}")
        return stored

    for name, matrix in matrices.items():
        stored = take(f"{name}.weight", matrix.shape)
        if matrix.format is None:
            state[f"{name}.weight"] = stored.values().float().clone()
            continue
        packed = stored.pack(matrix.format)
        state[f"{name}.data"] = packed.data.view(data_shape(matrix.format, matrix.shape))
        if packed.scale is not None:
            state[f"{name}.scale"] = packed.scale
    for name, tensor in model.named_parameters():
        if name not in state:
            state[name] = take(name, tuple(tensor.shape)).values().float().clone()
    if left:
        raise ValueError(f"{source.path} has the foreign tensor {next(iter(left))!r}")
    return state


def whole(path: Path, config: dict[str, Any], key: str, default: int | None = None) -> int:
    """A positive int of a configuration."""
    value = config.get(key, default)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise ValueError(f"{path}: {key!r} is {value!r}, wanted a positive int")
    return value


def number(path: Path, config: dict[str, Any], key: str, default: float | None = None) -> float:
    """A positive number of a configuration."""
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise ValueError(f"{path}: {key!r} is {value!r}, wanted a positive number")
    return float(value)

"""What every family of model has in common: a configuration, a directory on the disk, a fingerprint."""

import abc
import contextlib
import json
import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from fastgen import files, zoo

FORMAT = 1  # of config.json around a family's arguments, of which `load` refuses those it does not know
CONFIG_FILE = "config.json"
TENSORS_FILE = "model.safetensors"


class Model(torch.nn.Module, abc.ABC):
    """Base class of fastgen's models.

    A subclass hands its constructor's arguments to `super().__init__(name=value, ...)`; they become
    `.config`, and with the state dict they are all that is stored. So every parameter and buffer has to
    exist, in its final shape, once the constructor has run. A subclass that can be trained has
    `loss(batch)`, a scalar tensor.
    """

    classes: ClassVar[dict[str, type["Model"]]] = {}
    config: dict[str, Any]

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Register the class under its name, by which `load` finds it."""
        super().__init_subclass__(**keywords)
        Model.classes[cls.__name__] = cls

    def __init__(self, **config: Any) -> None:
        """Keep the arguments as JSON holds them (a tuple as a list); TypeError if it cannot."""
        super().__init__()
        try:
            self.config = json.loads(json.dumps(config, allow_nan=False, default=operator.index))
        except (TypeError, ValueError) as error:
            name = type(self).__name__
            raise TypeError(f"the arguments of {name} must be what JSON can hold: {error}") from None

    @abc.abstractmethod
    def sample(self, sample_ids: torch.Tensor, *, seed: int, **options: Any) -> Any:
        """Draw one sample for each id (int64, (B,)): a tensor (B, ...) or a tuple whose first member is one.

        A sample depends on its id, the seed and the options alone, never on the rest of the batch.
        """

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write `model.safetensors` and `config.json` into `directory`, each renamed into place."""
        path = files.make_directory(directory)
        config = {"format": FORMAT, "model": type(self).__name__, "config": self.config}
        files.write_tensors(path / TENSORS_FILE, self.state_dict())
        files.write_json(path / CONFIG_FILE, config)
        return path

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Model":
        """Read a model that `save` wrote, in the precision it was saved in, on the CPU, in evaluation mode.

        FileNotFoundError: a file is missing. ValueError: a file is truncated, damaged or invalid, holds
        another class, or a tensor is foreign, missing or of the wrong shape.
        """
        path = Path(directory)
        model = cls._from_config(path / CONFIG_FILE)
        tensors, _ = files.read_tensors(path / TENSORS_FILE)
        state = model.state_dict(keep_vars=True)
        files.check_tensors(path / TENSORS_FILE, tensors, state)
        for key, tensor in state.items():
            tensor.data = tensors[key]
        model._load_beside(path)
        return model.eval()

    def _load_beside(self, directory: Path) -> None:
        """Read what a family stores beside its tensors."""

    @classmethod
    def _from_config(cls, path: Path) -> "Model":
        stored = files.read_json(path)
        if stored.get("format") != FORMAT:
            raise ValueError(f"{path} has format {stored.get('format')!r}, this fastgen reads {FORMAT}")
        name, config = stored.get("model"), stored.get("config")
        family = Model.classes.get(name) if isinstance(name, str) else None
        if family is None:
            raise ValueError(f"{path} names the model {name!r}, known are {', '.join(sorted(Model.classes))}")
        if not issubclass(family, cls):
            raise ValueError(f"{path} holds a model of class {name}, wanted {cls.__name__}")
        if not isinstance(config, dict):
            raise ValueError(f"{path}: 'config' is {config!r}, wanted an object with the arguments of {name}")
        try:
            # The initial values are drawn and thrown away: the caller's generator must not notice.
            with torch.random.fork_rng():
                return family(**config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name} does not take this config: {error}") from None

    def fingerprint(self) -> str:
        """sha256 over class, configuration and state dict: equal for models that sample the same."""
        return files.tensors_digest(
            f"{type(self).__name__} {json.dumps(self.config, sort_keys=True)}", self.state_dict()
        )


@contextlib.contextmanager
def mode(module: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode for a block; afterwards each submodule has the mode it had before."""
    before = [(part, part.training) for part in module.modules()]
    try:
        # Hundreds of modules, most often in the right mode already: an attribute of a module is slow to set.
        if any(was_training != training for _, was_training in before):
            module.train(training)
        yield
    finally:
        for part, was_training in before:
            if part.training != was_training:
                part.training = was_training


def load(directory: str | os.PathLike[str]) -> Model:
    """Read a model of any family from the directory that `Model.save` wrote, or from the zoo.

    Args:
        directory: a path, or "zoo:NAME" for one of `fastgen.zoo.names()`.

    Raises:
        ValueError: the zoo has no such model. Else as `Model.load`.
    """
    name = os.fspath(directory)
    if name.endswith(".gguf"):
        raise ValueError(f"{name} is a file of another library, wanted Transformer.from_pretrained for it")
    return Model.load(zoo.path(name.removeprefix(zoo.PREFIX)) if name.startswith(zoo.PREFIX) else directory)

"""All that changes while a model is trained, and the one file that holds it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastgen import files
from fastgen.models.base import mode
from fastgen.training.settings import Settings

FILE = "checkpoint.safetensors"
FORMAT = 1


class Epoch(NamedTuple):
    """An epoch's number from 1, the steps done by its end, mean training loss, validation loss or None."""

    epoch: int
    step: int
    loss: float
    validation: float | None


@dataclasses.dataclass
class Counters:
    """The part of the state that is no tensor; `loss_sum` and `items` belong to the epoch under way."""

    step: int = 0
    loss_sum: float = 0.0
    items: int = 0
    history: list[Epoch] = dataclasses.field(default_factory=list)
    best: Epoch | None = None
    stopped: bool = False


# What the JSON of a checkpoint holds.
EPOCH: dict[str, Any] = {"epoch": int, "step": int, "loss": float | int, "validation": float | int | None}
COUNTERS: dict[str, Any] = {
    "step": int,
    "loss_sum": float | int,
    "items": int,
    "history": list,
    "best": list | None,
    "stopped": bool,
}


class State:
    """The model, its optimizer, the moving average of its parameters and its best state so far.

    `tensors()` are the live tensors under the names they have in a checkpoint. All exist from the start, so
    that a checkpoint is compared with what is wanted, then copied into them.
    """

    def __init__(self, model: torch.nn.Module, settings: Settings) -> None:
        """Begin at step 0. ValueError: there is nothing to train."""
        self.model, self.ema = model, settings.ema
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient")
        self.optimizer = _optimizer(list(self.parameters.values()), settings)
        self.average: dict[str, torch.Tensor] = {}
        if self.ema is not None:
            self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.best: dict[str, torch.Tensor] = {}
        if settings.patience is not None:
            self.best = {key: value.clone() for key, value in model.state_dict().items()}
        self.counters = Counters()

    def update_average(self) -> None:
        """average <- ema * average + (1 - ema) * parameters."""
        if self.ema is not None:
            current = [parameter.detach() for parameter in self.parameters.values()]
            torch._foreach_lerp_(list(self.average.values()), current, 1 - self.ema)

    def keep_best(self) -> None:
        """Take the model as it would be used now, with averaged parameters, for the best one."""
        with self.evaluation():
            for key, value in self.model.state_dict().items():
                if key in self.best:
                    self.best[key].copy_(value)

    def finish(self) -> None:
        """Give the model its final parameters: the best if kept, else the average if there is one."""
        if self.best and self.counters.best is not None:
            self.model.load_state_dict(self.best)
        else:
            self._use_average()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """The model with averaged parameters, in evaluation mode; afterwards as it was, buffers included."""
        live = [*self.model.parameters(), *self.model.buffers()]
        kept = [tensor.detach().clone() for tensor in live]
        try:
            with mode(self.model, training=False), torch.no_grad():
                self._use_average()
                yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(live, kept, strict=True):
                    tensor.copy_(value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of the state by name."""
        named = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for name, parameter in self.parameters.items():
            slots = self.optimizer.state[parameter]
            named |= {f"optimizer.{name}.{slot}": value for slot, value in slots.items()}
        named |= {f"average.{name}": value for name, value in self.average.items()}
        return named | {f"best.{key}": value for key, value in self.best.items()}

    def save(self, directory: Path, run: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        metadata = {"format": FORMAT, "run": run, "counters": dataclasses.asdict(self.counters)}
        files.write_tensors(directory / FILE, self.tensors(), metadata)

    def load(self, directory: Path, run: dict[str, Any], last: int) -> None:
        """Take up the checkpoint. ValueError: it is damaged, of another run, or past the step `last`."""
        path = directory / FILE
        found, metadata = files.read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} has format {metadata.get('format')!r}, this fastgen reads {FORMAT}")
        files.check_fields(path, metadata, {"run": dict, "counters": dict})
        counters = _read_counters(path, metadata["counters"])
        files.check_run(directory, metadata["run"], run)
        wanted = self.tensors()
        files.check_tensors(path, found, wanted)
        if counters.step > last:
            raise ValueError(f"{directory} is at step {counters.step}, past the {last} steps asked for")
        with torch.no_grad():
            for key, tensor in wanted.items():
                tensor.copy_(found[key])
        self.counters = counters

    def _use_average(self) -> None:
        with torch.no_grad():
            for name, value in self.average.items():
                self.parameters[name].copy_(value)


def _read_counters(path: Path, value: dict[str, Any]) -> Counters:
    """The counters as JSON held them; ValueError names what is missing or of another type."""
    files.check_fields(path, value, COUNTERS)
    counters = Counters(**{key: value[key] for key in COUNTERS})
    counters.history = [_read_epoch(path, epoch) for epoch in value["history"]]
    counters.best = None if value["best"] is None else _read_epoch(path, value["best"])
    return counters


def _read_epoch(path: Path, value: Any) -> Epoch:
    if not isinstance(value, list) or len(value) != len(EPOCH):
        raise ValueError(f"{path} holds the epoch {value!r}, wanted [{', '.join(EPOCH)}]")
    files.check_fields(path, dict(zip(EPOCH, value, strict=True)), EPOCH)
    return Epoch(*value)


def _optimizer(parameters: list[torch.nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """The optimizer with its state made at once, as zeros, which is how torch begins at the first step."""
    lr, weight_decay = settings.lr, settings.weight_decay
    if settings.optimizer == "sgd":
        sgd = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
        for p in parameters:
            sgd.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        return sgd
    adamw = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    for p in parameters:
        zero = torch.zeros((), dtype=torch.float32)
        adamw.state[p] = {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return adamw

"""`fastgen.training.train`: from a model and data to a trained model."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from fastgen import files
from fastgen.models.base import CONFIG_FILE, TENSORS_FILE, Model, mode
from fastgen.random import as_int, resolve_seed
from fastgen.training.batches import Batches, length
from fastgen.training.settings import Settings, check_length
from fastgen.training.state import FILE, Epoch, State

MOST_LOST = 300.0  # seconds of training that a kill may cost, so that long epochs are stored midway


class Result(NamedTuple):
    """The steps done, the epochs, the one with the lowest validation loss, and whether patience ended it."""

    steps: int
    history: list[Epoch]
    best: Epoch | None
    stopped_early: bool


def train(
    model: torch.nn.Module,
    data: Any,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    optimizer: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    ema: float | None = None,
    clip_norm: float | None = None,
    validation: float = 0.1,
    patience: int | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int | None = 0,
    progress: bool = True,
    callback: Callable[[Epoch], None] | None = None,
) -> Result:
    """Minimise `model.loss(batch)`; the model is changed in place.

    Torch's generators are seeded for each step, so that the result follows from the arguments and the model's
    initial values. With `out` the state is stored after every epoch, within one every five minutes, and at
    the end. The same call, after a kill or with more steps, goes on from there, to the same bits as a run
    that was never stopped.

    Args:
        model: Module with `loss(batch)`, a scalar tensor; a batch has the form of `data`. What a loss keeps
            from step to step (persistent chains, say) is in buffers, which validation leaves as they were.
        data: Tensor or NumPy array (N, ...), or a tuple of such of the same length.
        steps: How many steps to train in all; either this or `epochs`.
        epochs: How many times to go through the training part in all.
        batch_size: Items in a batch; an epoch's last one may be smaller.
        optimizer: "adamw" (Loshchilov and Hutter 2019) or "sgd" (with momentum 0.9).
        lr: Learning rate, above 0.
        weight_decay: At least 0; decoupled for "adamw", added to the gradient for "sgd".
        ema: Decay, between 0 and 1, of a moving average of the parameters. The average is what is validated
            and what the model has at the end.
        clip_norm: Largest Euclidean norm of the whole gradient, above 0.
        validation: Share of the data, in [0, 1), that is held out; its mean loss is taken after each epoch.
        patience: Stop after so many epochs without a lower validation loss. The model gets its best state.
        out: Directory for `checkpoint.safetensors` and, at the end, for the model if it is a fastgen model.
        seed: 64 bits that decide the split, the order of the data and the noise; None takes them from torch.
        progress: Show a progress bar with the loss.
        callback: Called with each `Epoch` once it is stored.

    Raises:
        TypeError, ValueError: an argument, the data or the loss is not as said above, or `out` holds another
            run or a damaged checkpoint.
        FloatingPointError: a loss, the gradient or a parameter is not finite; the last checkpoint stays.
        OSError: `out` cannot be written to.
        RuntimeError: another process is writing to `out`.
    """
    check_length(steps, epochs)
    patience = None if patience is None else as_int("patience", patience, 1)
    settings = Settings(
        as_int("batch_size", batch_size, 1), optimizer, lr, weight_decay, ema, clip_norm, validation,
        patience, resolve_seed(seed),
    )  # fmt: skip
    if not isinstance(model, torch.nn.Module) or not callable(getattr(model, "loss", None)):
        raise TypeError(f"model is {type(model).__name__}, wanted a torch module with loss(batch)")
    state = State(model, settings)
    device = next(iter(state.parameters.values())).device
    batches = Batches(data, settings, device)
    last = int(steps) if steps is not None else int(epochs or 0) * batches.per_epoch
    directory = None if out is None else files.make_directory(out)
    training = _Training(model, settings, state, batches, directory)
    with contextlib.ExitStack() as stack:
        if directory is not None:
            stack.enter_context(files.exclusive(directory))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(mode(model, training=True))
        training.begin(last)
        counters = state.counters
        bar = tqdm(total=last, initial=counters.step, unit="step", disable=not progress)
        for epoch in training.run(last, stack.enter_context(bar)):
            if callback is not None:
                callback(epoch)
        training.finish()
    return Result(counters.step, counters.history, counters.best, counters.stopped)


class _Training:
    """A training under way: what it is made of, and its steps."""

    def __init__(
        self, model: Any, settings: Settings, state: State, batches: Batches, directory: Path | None
    ) -> None:
        self.model, self.settings, self.state, self.batches = model, settings, state, batches
        self.directory = directory
        self.identity: dict[str, Any] = {}
        self.stored = time.monotonic()

    def begin(self, last: int) -> None:
        """Take up the checkpoint if there is one."""
        if self.directory is None:
            return
        data = files.tensors_digest("", {str(i): tensor for i, tensor in enumerate(self.batches.tensors)})
        config = self.model.config if isinstance(self.model, Model) else None
        self.identity = {"model": type(self.model).__name__, "config": config, "data": data}
        self.identity |= dataclasses.asdict(self.settings)
        if (self.directory / FILE).exists():
            self.state.load(self.directory, self.identity, last)
        elif any((self.directory / name).exists() for name in (CONFIG_FILE, TENSORS_FILE)):
            raise ValueError(f"{self.directory} holds a model but no {FILE}; give another directory")

    def run(self, last: int, bar: tqdm) -> Iterator[Epoch]:
        """Train up to the step `last` or until patience ends; give each epoch once it is stored."""
        counters = self.state.counters
        while counters.step < last and not counters.stopped:
            loss = self.step()
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update()
            if counters.step % self.batches.per_epoch == 0:
                epoch = self.end_epoch()
                self.save()
                yield epoch
            elif time.monotonic() - self.stored > MOST_LOST:
                self.save()
        if counters.step % self.batches.per_epoch:
            self.save()

    def step(self) -> float:
        """One update of the parameters; returns the loss before it."""
        counters, optimizer = self.state.counters, self.state.optimizer
        self.batches.seed_noise(counters.step)
        batch = self.batches.training(counters.step)
        loss = _checked(self.model, self.model.loss(batch))
        value = self._finite("the loss", loss.item())
        optimizer.zero_grad()
        loss.backward()
        if self.settings.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.state.parameters.values(), self.settings.clip_norm)
            self._finite("the norm of the gradient", norm.item())
        optimizer.step()
        self.state.update_average()
        counters.step += 1
        counters.loss_sum += value * length(batch)
        counters.items += length(batch)
        return value

    def end_epoch(self) -> Epoch:
        """Take the validation loss, and decide whether it was the best epoch and whether it was the last."""
        counters, patience = self.state.counters, self.settings.patience
        number = counters.step // self.batches.per_epoch
        epoch = Epoch(number, counters.step, counters.loss_sum / counters.items, self.validate())
        counters.history.append(epoch)
        counters.loss_sum, counters.items = 0.0, 0
        if epoch.validation is not None:
            if counters.best is None or epoch.validation < (counters.best.validation or 0.0):
                counters.best = epoch
                self.state.keep_best()
            counters.stopped = patience is not None and number - counters.best.epoch >= patience
        return epoch

    def validate(self) -> float | None:
        """The mean loss over the data held out, always under the same noise."""
        if not len(self.batches.held_out):
            return None
        total = 0.0
        with self.state.evaluation():
            for index, batch in enumerate(self.batches.validation()):
                self.batches.seed_noise(index, validation=True)
                total += self.model.loss(batch).item() * length(batch)
        return self._finite("the validation loss", total / len(self.batches.held_out))

    def save(self) -> None:
        """Replace the checkpoint, unless the parameters are spoiled."""
        for name, parameter in self.state.parameters.items():
            for value in parameter.detach()[~parameter.isfinite()].tolist()[:1]:
                self._finite(name, value)
        if self.directory is not None:
            self.state.save(self.directory, self.identity)
        self.stored = time.monotonic()

    def finish(self) -> None:
        """Give the model its final parameters and store it."""
        self.state.optimizer.zero_grad()
        self.state.finish()
        if self.directory is not None and isinstance(self.model, Model):
            self.model.save(self.directory)

    def _finite(self, what: str, value: float) -> float:
        if math.isfinite(value):
            return value
        advice = f"lower lr (now {self.settings.lr}) or set clip_norm (now {self.settings.clip_norm})"
        kept = ""
        if self.directory is not None and (self.directory / FILE).exists():
            kept = f"; the last checkpoint, {self.directory / FILE}, is kept"
        raise FloatingPointError(f"{what} is {value} at step {self.state.counters.step}; {advice}{kept}")


def _checked(model: torch.nn.Module, loss: Any) -> torch.Tensor:
    name = f"{type(model).__name__}.loss"
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"{name} returned {type(loss).__name__}, wanted a scalar tensor")
    if loss.numel() != 1 or not loss.requires_grad:
        came = f"shape {tuple(loss.shape)}, requires_grad {loss.requires_grad}"
        raise ValueError(f"{name} returned {came}, wanted a scalar tensor with a gradient")
    return loss

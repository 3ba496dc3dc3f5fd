"""Which data a step sees, and the noise it draws: functions of seed and step, so that nothing is stored."""

from collections.abc import Iterator
from typing import Any

import torch

from fastgen import random
from fastgen.random import Stream
from fastgen.training.settings import Settings

Batch = torch.Tensor | tuple[torch.Tensor, ...]


class Batches:
    """The data, split into a training and a validation part and dealt out in batches.

    `data` is a tensor (N, ...) or a tuple of tensors of the same length (images and labels, say); a batch has
    the same form. Each epoch deals out the training part once, in an order of its own; its last batch may be
    smaller.
    """

    def __init__(self, data: Any, settings: Settings, device: torch.device) -> None:
        """Batches go to `device`. TypeError, ValueError: `data` is not as said above, or too short."""
        self.single = not isinstance(data, tuple | list)
        self.tensors = _as_tensors([data] if self.single else list(data))
        self.size, self.seed, self.device = settings.batch_size, settings.seed, device
        n = len(self.tensors[0])
        held_out = max(1, round(n * settings.validation)) if settings.validation else 0
        if held_out >= n:
            raise ValueError(f"data has {n} items, wanted more than the {held_out} held out for validation")
        order = _permutation(n, self.seed, 0, Stream.TRAINING_SPLIT)
        self.held_out, self.kept = order[:held_out].sort().values, order[held_out:].sort().values
        self.per_epoch = -(-len(self.kept) // self.size)
        self._epoch, self._order = -1, self.kept

    def training(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            shuffled = _permutation(len(self.kept), self.seed, epoch, Stream.TRAINING_ORDER)
            self._epoch, self._order = epoch, self.kept[shuffled]
        return self._take(self._order[position * self.size : (position + 1) * self.size])

    def validation(self) -> Iterator[Batch]:
        """The validation part, always in the same batches."""
        for indices in self.held_out.split(self.size):
            yield self._take(indices)

    def seed_noise(self, step: int, *, validation: bool = False) -> None:
        """Seed torch's generators for a step, or for a batch of the validation."""
        ids = torch.tensor([int(validation)])
        low, high = random.bits(self.seed, ids, step=step, n=2, stream=Stream.TRAINING_NOISE)[0].tolist()
        # Not torch.manual_seed: where no GPU is in use it formats a traceback each time, which takes 1 ms.
        torch.default_generator.manual_seed(high << 32 | low)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(high << 32 | low)

    def _take(self, indices: torch.Tensor) -> Batch:
        batch = tuple(tensor[indices.to(tensor.device)].to(self.device) for tensor in self.tensors)
        return batch[0] if self.single else batch


def length(batch: Batch) -> int:
    """Number of items in a batch."""
    return len(batch) if isinstance(batch, torch.Tensor) else len(batch[0])


def _permutation(n: int, seed: int, epoch: int, stream: Stream) -> torch.Tensor:
    words = random.bits(seed, torch.arange(n), step=epoch, n=1, stream=stream)
    return words[:, 0].long().argsort(stable=True)


def _as_tensors(data: list[Any]) -> list[torch.Tensor]:
    try:
        tensors = [torch.as_tensor(member) for member in data]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"data is not a tensor or a tuple of tensors: {error}") from None
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if not shapes or any(not shape or shape[0] != shapes[0][0] or shape[0] == 0 for shape in shapes):
        raise ValueError(f"data has the shapes {shapes}, wanted tensors of one length, which is at least 1")
    return tensors

"""`fastgen.sample`: from a model to n samples, in memory or in a directory."""

import contextlib
import functools
import os
from collections.abc import Iterator
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fastgen import files
from fastgen.models.base import mode
from fastgen.options import check_names, device_of
from fastgen.random import as_int, resolve_seed
from fastgen.sampling.manifest import identity, open_run
from fastgen.sampling.writers import WRITERS

BATCH_SIZE = 256
SHARD_SIZE = 256
LAST_ID = 2**56


def sample(
    model: Any,
    n: int,
    *,
    seed: int | None = 0,
    out: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    first: int = 0,
    shard_size: int = SHARD_SIZE,
    format: str = "npy",
    device: str | torch.device | None = None,
    progress: bool = True,
    **options: Any,
) -> torch.Tensor | Path:
    """Make the samples with the ids first .. first + n - 1.

    Sample i is the same in every run with this seed: `batch_size`, `first`, `shard_size` and interruptions
    change nothing. With `out` a killed run is taken up again by the same call, and a larger `n` adds to what
    is there.

    Args:
        model: Anything with `sample(sample_ids, *, seed, **options)` that returns a tensor (batch, ...) or a
            tuple whose first member is one. A torch module is put in evaluation mode meanwhile. With `out`
            it is told from others by its `fingerprint()`, else by its class, attributes, parameters and
            buffers; the attributes must then be numbers, strings, tensors, modules or lists of them.
        n: Number of samples, at least 1.
        seed: 64 bits; None takes a seed from torch's default generator.
        out: Directory for shards and `manifest.json`; made if need be.
        batch_size: Samples made at once; 256 by default.
        first: Id of the first sample; ids lie below 2**56.
        shard_size: Samples in a shard; a killed run loses the shard it was making and, where a shard takes
            milliseconds, a few that were not yet listed.
        format: How shards are written: "npy" (one array file a shard) or "png" (one picture a sample).
        device: Where the ids are, and so the samples of a model that has no tensors; None is the model's.
        progress: Show a progress bar.
        options: Passed to `model.sample`. A tensor or array whose first dimension is n holds an entry for
            each sample, in the order of ids, and each batch gets its own; all else goes whole to every batch.
            (One entry for all that happens to be n long has to be expanded to n rows, or be a tuple; a list
            of n > 1 numbers or rows is refused, since it may mean either.)

    Returns:
        The samples (n, ...) on the model's device, or with `out` its path; `fastgen.sampling.load` reads it.

    Raises:
        TypeError, ValueError: an argument or what the model returned is not what is said above, or `out`
            belongs to another run (model, seed, options, range, ...) or is damaged. What was written stays.
        OSError: `out` cannot be written to.
        RuntimeError: another process is writing to `out`.
    """
    n, first, seed = as_int("n", n, 1), as_int("first", first, 0), resolve_seed(seed)
    batch_size = BATCH_SIZE if batch_size is None else as_int("batch_size", batch_size, 1)
    shard_size = as_int("shard_size", shard_size, 1)
    _check_model(model)
    check_names(f"{type(model).__name__}.sample", model.sample, options, but=("sample_ids", "seed"))
    if first + n > LAST_ID:
        raise ValueError(f"first + n is {first + n}, wanted at most 2**56, because sample ids have 56 bits")
    if format not in WRITERS:
        raise ValueError(f"format is {format!r}, wanted one of {', '.join(WRITERS)}")
    ids, options = range(first, first + n), {name: _option(name, value, n) for name, value in options.items()}
    draw = functools.partial(
        _draw, every=ids, model=model, options=options, seed=seed, batch_size=batch_size,
        device=_device(model) if device is None else device_of(device),
    )  # fmt: skip
    if out is None:
        with _evaluation(model), tqdm(total=n, unit="sample", disable=not progress) as bar:
            return draw(ids, bar)
    run = identity(model, seed=seed, options=options, first=first, shard_size=shard_size, format=format)
    directory = files.make_directory(out)
    with files.exclusive(directory), _evaluation(model):
        manifest = open_run(directory, run, n)
        missing = manifest.missing()
        done = n - sum(len(ids) for _, ids in missing)
        with tqdm(total=n, initial=done, unit="sample", disable=not progress) as bar:
            try:
                for index, shard in missing:
                    manifest.add(index, shard, draw(shard, bar).cpu())
            finally:
                manifest.write()
    return directory


def _draw(
    ids: range,
    bar: tqdm,
    *,
    every: range,
    model: Any,
    options: dict[str, Any],
    seed: int,
    batch_size: int,
    device: torch.device,
) -> torch.Tensor:
    """The samples `ids` of `every`, batch after batch."""
    samples: torch.Tensor | None = None
    for start in range(0, len(ids), batch_size):
        chosen = ids[start : start + batch_size]
        sample_ids = torch.arange(chosen.start, chosen.stop, device=device)
        own = {name: _of(chosen, every, value) for name, value in options.items()}
        batch = _check_batch(model, model.sample(sample_ids, seed=seed, **own), len(chosen))
        if samples is None:
            samples = batch.new_empty((len(ids), *batch.shape[1:]))
        if batch.shape[1:] != samples.shape[1:] or batch.dtype != samples.dtype:
            came, wanted = (f"{tuple(x.shape[1:])} {x.dtype}" for x in (batch, samples))
            raise ValueError(f"{type(model).__name__}.sample gave a sample of {came} after one of {wanted}")
        samples[start : start + len(chosen)] = batch
        bar.update(len(chosen))
    assert samples is not None  # n is at least 1
    return samples


def _option(name: str, value: Any, n: int) -> Any:
    """An option as it is shared out: arrays as tensors; TypeError for a list that may mean two things."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.as_tensor(value)
    entries = (Number, list, tuple, np.ndarray, torch.Tensor)
    if isinstance(value, list) and len(value) == n > 1 and all(isinstance(entry, entries) for entry in value):
        raise TypeError(
            f"{name} is a list of {n} entries for {n} samples, wanted a tensor if each sample has an entry of"
            " its own, or a tuple if all samples get them all"
        )
    return value


def _of(chosen: range, every: range, value: Any) -> Any:
    """An option for the samples `chosen`: their entries, if it has one for each of `every`."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0 or len(value) != len(every):
        return value
    return value[chosen.start - every.start : chosen.stop - every.start]


def _check_model(model: Any) -> None:
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}, wanted a model of that class")
    if not callable(getattr(model, "sample", None)):
        raise TypeError(f"model is {type(model).__name__}, wanted something with sample(sample_ids, *, seed)")


def _check_batch(model: Any, result: Any, size: int) -> torch.Tensor:
    batch = result[0] if isinstance(result, tuple) and result else result
    name = f"{type(model).__name__}.sample"
    if not isinstance(batch, torch.Tensor):
        came = type(batch).__name__
        raise TypeError(f"{name} returned {came}, wanted a tensor or a tuple whose first member is one")
    if batch.dim() == 0 or batch.shape[0] != size:
        raise ValueError(f"{name} returned shape {tuple(batch.shape)} for {size} ids, wanted ({size}, ...)")
    return batch


def _device(model: Any) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, torch.nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


@contextlib.contextmanager
def _evaluation(model: Any) -> Iterator[None]:
    """No gradients, and no dropout: a sample must not depend on the mode the model was left in."""
    module = isinstance(model, torch.nn.Module)
    with mode(model, training=False) if module else contextlib.nullcontext(), torch.no_grad():
        yield

"""Reading what `fastgen.sample(..., out=...)` wrote."""

import os
from pathlib import Path

import numpy as np
import torch

from fastgen.sampling.manifest import Manifest
from fastgen.sampling.writers import shard_path


def load(out: str | os.PathLike[str]) -> torch.Tensor:
    """The samples (n, ...) of a finished run in the format "npy".

    The shards are memory maps. One shard is returned as it is, so that pages are read when they are touched,
    and writing to the tensor does not change the file; several are put together in memory, once.

    Raises:
        FileNotFoundError: `out` has no manifest. ValueError: the run is not finished, wrote pictures, or a
            shard has not the size it should have. Checksums, which take a reading of every byte, are compared
            when `sample` is called again.
    """
    manifest = Manifest.read(Path(out))
    if manifest.run["format"] != "npy":
        raise ValueError(f"{out} holds pictures ({manifest.run['format']}), load reads npy")
    missing = sum(len(ids) for _, ids in manifest.missing())
    if missing:
        raise ValueError(
            f"{out} lacks {missing} of {manifest.n} samples; repeat the call of sample that began it"
        )
    begin, *others = manifest.shards
    samples = _map(manifest, begin["index"], begin["count"])
    if not others:
        return samples
    # One after the other, because a process may not hold more than some 65,000 memory maps.
    together = samples.new_empty((manifest.n, *samples.shape[1:]))
    end = 0
    for shard in manifest.shards:
        start, end = end, end + shard["count"]
        together[start:end] = _map(manifest, shard["index"], shard["count"])
    return together


def _map(manifest: Manifest, index: int, count: int) -> torch.Tensor:
    path = shard_path(manifest.directory, "npy", index)
    try:
        # Not np.load, which takes what is no array for a pickle, and says how to trust it.
        array = np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from None
    wanted = (count, *(manifest.shape or []))
    if array.shape != wanted or str(array.dtype) != manifest.dtype:
        came = f"{array.dtype} {array.shape}"
        raise ValueError(f"{path} holds {came}, the manifest says {manifest.dtype} {wanted}")
    return torch.from_numpy(array)

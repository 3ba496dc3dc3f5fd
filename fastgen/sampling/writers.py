"""Shards on the disk: as one array file, or as one picture a sample."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastgen import files

NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def stored(samples: torch.Tensor) -> torch.Tensor:
    """The samples in a dtype that numpy has: narrower floats than its own (bfloat16, ...) become float32."""
    narrow = samples.is_floating_point() and samples.dtype not in NUMPY_FLOATS
    return samples.float() if narrow else samples


def write_arrays(path: Path, samples: torch.Tensor, first: int) -> None:
    """Write the samples (count, ...) as one .npy file."""
    array = samples.contiguous().numpy()
    with files.replacing(path) as partial, open(partial, "wb") as file:
        # Not np.save, which does not notice that the disk is full.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def write_images(path: Path, samples: torch.Tensor, first: int) -> None:
    """Write the samples as PNG files, named by id, into the directory `path`.

    A sample is (H, W), grey, or (C, H, W) with C 1, grey, or 3, colour. uint8 is taken as it is; bool, and
    numbers that are all -1 or +1 (spins), become black and white; floating point numbers lie in [0, 1], 1
    being white; other integers are 0, black, or 1, white. ValueError for anything else, naming the sample.
    """
    pictures = [_pixels(sample, sample_id) for sample_id, sample in enumerate(samples, first)]
    names = [path / f"{first + i:012d}.png{files.PARTIAL}" for i in range(len(pictures))]
    path.mkdir(exist_ok=True)
    for name, pixels in zip(names, pictures, strict=True):
        Image.fromarray(pixels.numpy()).save(name, format="PNG")
    os.sync()  # once for all: to flush each file by itself takes longer than all the rest
    for name in names:
        os.replace(name, name.with_suffix(""))
    files.flush(path)
    files.flush(path.parent)


Writer = Callable[[Path, torch.Tensor, int], None]
WRITERS: dict[str, Writer] = {"npy": write_arrays, "png": write_images}


def shard_path(directory: Path, format: str, index: int) -> Path:
    """Where a shard lies: a file for arrays, a directory for pictures."""
    return directory / f"shard-{index:06d}{'.npy' if format == 'npy' else ''}"


def digest(path: Path) -> str:
    """sha256 of a shard: of the file, or of the names and digests of the pictures in their order."""
    if path.is_file():
        return files.file_digest(path)
    lines = [f"{picture.name} {files.file_digest(picture)}\n" for picture in sorted(path.glob("*.png"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _pixels(sample: torch.Tensor, sample_id: int) -> torch.Tensor:
    """uint8 (H, W) or (H, W, 3)."""
    shape = tuple(sample.shape)
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[0] not in (1, 3)):
        raise ValueError(f"sample {sample_id} has shape {shape}, png wants (H, W), (1, H, W) or (3, H, W)")
    if len(shape) == 3:
        sample = sample[0] if shape[0] == 1 else sample.permute(1, 2, 0).contiguous()
    if sample.dtype == torch.uint8:
        return sample
    if sample.dtype == torch.bool:
        return sample.to(torch.uint8) * 255
    if sample.is_complex():
        raise ValueError(f"sample {sample_id} is {sample.dtype}, png wants real numbers")
    low, high = sample.min().item(), sample.max().item()
    if bool((sample.abs() == 1).all()):
        return (sample > 0).to(torch.uint8) * 255
    wanted = "[0, 1]" if sample.is_floating_point() else "0 and 1"
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"sample {sample_id} ranges from {low} to {high}, png wants {wanted}, or -1 and +1 only"
        )
    return (sample.float() * 255).round().to(torch.uint8)

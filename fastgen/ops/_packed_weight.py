"""The weight of `packed_linear`: bytes as memory or a file holds them, and what they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.ops._linear_checks import is_dense, kind
from fastgen.reference import packed_linear as reference


@dataclass(frozen=True)
class PackedWeight:
    """A weight (out, in) in one of the formats that `packed_linear` multiplies with.

    ========  =====================================================================================
    float32   panels of 16 outputs, (ceil(out / 16), in, 16) float32: 4 bytes a weight
    bfloat16  the same in bfloat16: 2 bytes
    int8      panels of 16 outputs, (ceil(out / 16), ceil(in / 4), 16, 4) int8, times one float32 scale an
              output: 1 byte; x is rounded to 8 bits, too
    q4_0      GGUF's blocks of 32 inputs, row by row, (out, in / 32 * 18) bytes: 4.5 bits
    q4_1      the same with a least value each block, (out, in / 32 * 20) bytes: 5 bits
    q8_0      the same with 8 bits, (out, in / 32 * 34) bytes: 8.5 bits
    ========  =====================================================================================

    Args:
        data: what the format keeps, contiguous; GGUF's blocks as uint8 of any shape, at any address, and
            maybe of a file that is mapped for reading only. Nothing is copied.
        format: one of the names above.
        shape: (out, in).
        scale: (out,) float32 with "int8", None with all others.

    Raises:
        TypeError, ValueError: naming what came and what is wanted.
    """

    data: Tensor
    format: str
    shape: tuple[int, int]
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        check_format(self.format, self.shape)
        dtype = reference.DTYPES[self.format]
        if not is_dense(self.data) or self.data.dtype != dtype:
            raise TypeError(f"data is {kind(self.data)}, wanted a dense {dtype} tensor for {self.format}")
        shape = reference.data_shape(self.format, self.shape)
        panels = self.format not in reference.BLOCK_BYTES
        if self.data.numel() != math.prod(shape) or (panels and self.data.shape != shape):
            raise ValueError(
                f"data has shape {tuple(self.data.shape)}, wanted {shape} for a weight {tuple(self.shape)} "
                f"in {self.format}"
            )
        if not self.data.is_contiguous():
            raise ValueError(f"data has strides {self.data.stride()}, wanted a contiguous tensor")
        if self.format != "int8" and self.scale is not None:
            raise TypeError(f"scale is {kind(self.scale)}, wanted None: {self.format} holds its own scales")
        if self.format == "int8":
            if not is_dense(self.scale) or self.scale.dtype != torch.float32:
                raise TypeError(f"scale is {kind(self.scale)}, wanted a dense float32 tensor with int8")
            assert self.scale is not None
            if self.scale.shape != self.shape[:1] or not self.scale.is_contiguous():
                raise ValueError(f"scale has shape {tuple(self.scale.shape)}, wanted ({self.shape[0]},)")
            if self.scale.device != self.data.device:
                raise ValueError(f"scale is on {self.scale.device}, wanted {self.data.device} as data")

    @staticmethod
    def pack(weight: Tensor, format: str) -> PackedWeight:
        """W (out, in), floating, in a format; "q4_0", "q4_1" and "q8_0" round as GGUF's quantizer does.

        Raises:
            TypeError, ValueError: weight is no floating matrix; in is no multiple of the block of 32 inputs;
                the format holds integers, and weight NaN, infinity or what float16 scales do not reach.
        """
        if not is_dense(weight) or not weight.is_floating_point():
            raise TypeError(f"weight is {kind(weight)}, wanted a dense floating tensor")
        if weight.dim() != 2:
            raise ValueError(f"weight has shape {tuple(weight.shape)}, wanted (out, in)")
        shape = (weight.shape[0], weight.shape[1])
        check_format(format, shape)
        if format not in ("float32", "bfloat16"):
            largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
            # The largest scale: of q4_0 a value over 8, of q4_1 two over 15 and the least value itself.
            limit = {"q4_0": 8 * 65504.0, "q4_1": 65504.0, "q8_0": 127 * 65504.0}.get(format, 3e38)
            if not largest <= limit:
                raise ValueError(f"weight holds {largest:g}, wanted no more than {limit:g} for {format}")
        data, scale = reference.pack(weight.detach().float(), format)
        return PackedWeight(data, format, shape, scale)

    def unpack(self) -> Tensor:
        """The weight as it is multiplied with, (out, in) float32."""
        return reference.unpack(self.data, self.scale, self.format, self.shape, torch.float32)

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of `unpack()`, (*indices.shape, in) float32, without unpacking the others: an embedding.

        Raises:
            TypeError: indices is no int64 or int32 tensor.
            IndexError: an index is not in [0, out).
        """
        if not is_dense(indices) or indices.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"indices is {kind(indices)}, wanted a dense int64 or int32 tensor")
        flat, (outputs, inputs) = indices.flatten().long(), self.shape
        if flat.numel() and not (int(flat.min()) >= 0 and int(flat.max()) < outputs):
            raise IndexError(f"indices go from {flat.min()} to {flat.max()}, wanted 0 to {outputs - 1}")
        found = reference.rows(self.data, self.scale, self.format, self.shape, flat)
        return found.view(*indices.shape, inputs)

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        scale = None if self.scale is None else self.scale.to(device)
        return PackedWeight(self.data.to(device), self.format, self.shape, scale)


def check_format(format: str, shape: tuple[int, int]) -> None:
    """Refuse a format that is none, and a shape that it cannot hold."""
    if not isinstance(format, str) or format not in reference.DTYPES:
        raise ValueError(f"format is {format!r}, wanted one of {', '.join(reference.DTYPES)}")
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"shape is {tuple(shape)}, wanted (out, in)")
    if format in reference.BLOCK_BYTES and shape[1] % reference.BLOCK:
        raise ValueError(
            f"in is {shape[1]}, wanted a multiple of {reference.BLOCK}, the block of {format}: shape {shape}"
        )

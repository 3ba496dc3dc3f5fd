"""The specification of `fastgen.ops.packed_linear` in plain PyTorch, and of the formats of its weights.

A panel holds 16 outputs side by side: element [p, k, j] is W[16 p + j, k], zero past the last output; of int8
element [p, k, j, i] is W[16 p + j, 4 k + i] over the output's scale, and x is rounded to 8 bits, too. The
formats of GGUF hold W row by row, in blocks of 32 inputs with scales of float16 before them (d, in q4_1 also
the least value m); byte j of a block of 4 bits has element j in its low half, element j + 16 in its high one.

    q4_0  d, 16 bytes    d (q - 8)        q4_1  d, m, 16 bytes    d q + m        q8_0  d, 32 bytes    d q
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.reference.linear import ACTIVATIONS

PANEL, BLOCK, QUAD = 16, 32, 4
BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q8_0": 34}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8} | dict.fromkeys(
    BLOCK_BYTES, torch.uint8
)


def packed_linear(
    x: Tensor,
    data: Tensor,
    scale: Tensor | None,
    format: str,
    outputs: int,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """See `fastgen.ops.packed_linear`; the weight is widened whole, products and sums are PyTorch's."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight = unpack(data, scale, format, (outputs, x.shape[1]), wide)
    rows = rounded(x.to(wide)) if format == "int8" else x.to(wide)
    y = ACTIVATIONS[activation](F.linear(rows, weight, None if bias is None else bias.to(wide)))
    return (y if residual is None else y + residual).to(x.dtype)


def rounded(x: Tensor) -> Tensor:
    """Rows of x in 8 bits: in each block of 32 inputs integers up to 127 times a scale.

    A block that holds NaN or infinity becomes NaN. The gradient is that of x itself.
    """
    inputs = x.shape[1]
    blocks = F.pad(x.detach(), (0, -inputs % BLOCK)).unflatten(1, (-1, BLOCK))
    size = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    near = (blocks * (127 / size)).round() * (size / 127)
    near = near.where(size.isfinite(), torch.nan).flatten(1)[:, :inputs]
    return x + (near - x.detach()) if x.requires_grad else near


def data_shape(format: str, shape: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the data of a weight (out, in)."""
    outputs, inputs = shape
    if format in BLOCK_BYTES:
        return outputs, inputs // BLOCK * BLOCK_BYTES[format]
    panels = -(-outputs // PANEL)
    return (panels, -(-inputs // QUAD), PANEL, QUAD) if format == "int8" else (panels, inputs, PANEL)


def unpack(
    data: Tensor, scale: Tensor | None, format: str, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """W (out, in) in float32 or float64."""
    data = data.reshape(data_shape(format, shape))
    if format in ("float32", "bfloat16"):
        return data.to(dtype).transpose(1, 2).flatten(0, 1)[: shape[0]]
    if format == "int8":
        assert scale is not None
        whole = data.transpose(1, 2).flatten(2).flatten(0, 1)[: shape[0], : shape[1]]
        return whole.to(dtype) * scale.to(dtype)[:, None]
    blocks = data.reshape(-1, BLOCK_BYTES[format])
    d = _halves(blocks[:, :2]).to(dtype)
    if format == "q8_0":
        return (d * blocks[:, 2:].view(torch.int8).to(dtype)).view(shape)
    bits = blocks[:, 4 if format == "q4_1" else 2 :]
    q = torch.cat([bits & 15, bits >> 4], dim=1).to(dtype)
    values = d * (q - 8) if format == "q4_0" else d * q + _halves(blocks[:, 2:4]).to(dtype)
    return values.view(shape)


def rows(data: Tensor, scale: Tensor | None, format: str, shape: tuple[int, int], indices: Tensor) -> Tensor:
    """Those rows of W in float32, (len(indices), in), without unpacking the others."""
    data = data.view(data_shape(format, shape))
    if format not in BLOCK_BYTES:
        found = data[indices // PANEL, :, indices % PANEL].flatten(1)[:, : shape[1]].float()
        return found if scale is None else found * scale[indices, None]
    return unpack(data[indices], None, format, (len(indices), shape[1]), torch.float32)


def pack(weight: Tensor, format: str) -> tuple[Tensor, Tensor | None]:
    """Data and scale of W (out, in), a float32 tensor; the formats of GGUF round as GGUF's own quantizer."""
    shape = data_shape(format, (weight.shape[0], weight.shape[1]))
    if format in ("float32", "bfloat16"):
        padded = F.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL)).view(shape[0], PANEL, shape[1])
        return padded.transpose(1, 2).contiguous().to(DTYPES[format]), None
    if format == "int8":
        scale = weight.abs().amax(1) / 127 if weight.shape[1] else weight.new_zeros(weight.shape[0])
        panels, quads, _, _ = data_shape(format, (weight.shape[0], weight.shape[1]))
        whole = (weight * _inverse(scale)[:, None]).round().to(torch.int8)
        whole = F.pad(whole, (0, -weight.shape[1] % QUAD, 0, -weight.shape[0] % PANEL))
        return whole.view(panels, PANEL, quads, QUAD).transpose(1, 2).contiguous(), scale
    if weight.numel() == 0:
        return weight.new_empty(shape, dtype=torch.uint8), None
    return _QUANTIZERS[format](weight.reshape(-1, BLOCK)).view(shape), None


def _halves(two_bytes: Tensor) -> Tensor:
    return two_bytes.contiguous().view(torch.float16)


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d == 0, 0.0, 1 / d)


def _as_bytes(values: Tensor) -> Tensor:
    return values.half().view(torch.uint8)


def _nibbles(q: Tensor) -> Tensor:
    q = q.to(torch.uint8).clamp(max=15)
    return q[:, : BLOCK // 2] | q[:, BLOCK // 2 :] << 4


def _q4_0(blocks: Tensor) -> Tensor:
    d = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8
    return torch.cat([_as_bytes(d), _nibbles((blocks * _inverse(d) + 8.5).trunc())], 1)


def _q4_1(blocks: Tensor) -> Tensor:
    low = blocks.amin(1, keepdim=True)
    d = (blocks.amax(1, keepdim=True) - low) / 15
    return torch.cat(
        [_as_bytes(d), _as_bytes(low), _nibbles(((blocks - low) * _inverse(d) + 0.5).trunc())], 1
    )


def _q8_0(blocks: Tensor) -> Tensor:
    d = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * _inverse(d)
    whole = scaled.trunc()
    rounded = whole + (2 * (scaled - whole)).trunc()  # halves away from zero
    return torch.cat([_as_bytes(d), rounded.to(torch.int8).view(torch.uint8)], 1)


_QUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {"q4_0": _q4_0, "q4_1": _q4_1, "q8_0": _q8_0}

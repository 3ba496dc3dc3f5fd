"""A matrix times the channels of every pixel on a GPU: tiles of outputs and pixels.

The tiles are the same for every batch and the channels are added in the same order, so an image's bits do not
depend on the images beside it. Products of float32 take three passes of TF32.
"""

import torch
import triton
import triton.language as tl

OUTPUTS, PIXELS, INPUTS = 32, 64, 32  # a tile of results, and the channels it adds at a time
SIDE = 16  # each of the three in float64, whose products are added without tensor cores


@triton.jit
def product_kernel(
    y, x, weight, bias, channels, pixels, image_stride, channel_stride, pixel_stride,
    BIAS: tl.constexpr, OUTPUTS: tl.constexpr, PIXELS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """A tile of y = W x + b of one image."""
    unit = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    pixel = (tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS))[None, :]
    image = tl.program_id(2).to(tl.int64) * image_stride
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    total = tl.zeros((OUTPUTS, PIXELS), REAL)
    for start in range(0, channels, INPUTS):
        i = start + tl.arange(0, INPUTS)
        place = unit[:, None].to(tl.int64) * channels + i[None, :]
        there = (unit[:, None] < channels) & (i[None, :] < channels)
        w = tl.load(weight + place, mask=there, other=0.0)
        place = image + i[:, None].to(tl.int64) * channel_stride + pixel * pixel_stride
        here = (i[:, None] < channels) & (pixel < pixels)
        a = tl.load(x + place, mask=here, other=0.0).to(REAL)
        if DOUBLE:
            total += tl.sum(w[:, :, None] * a[None, :, :], axis=1)
        else:
            total = tl.dot(w, a, total, input_precision="tf32x3")
    if BIAS:
        total += tl.load(bias + unit, mask=unit < channels, other=0.0)[:, None]
    place = image + unit[:, None].to(tl.int64) * channel_stride + pixel * pixel_stride
    here = (unit[:, None] < channels) & (pixel < pixels)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=here)


def invertible_linear(x, weight, bias, channels_last):
    """y of `fastgen.ops.invertible_linear`."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    channels = len(weight)
    if channels_last:  # all pixels are those of one image
        images, pixels, strides = 1, x.numel() // channels, (0, 1, channels)
    else:
        images, _, pixels = x.shape
        strides = channels * pixels, pixels, 1
    tile = (SIDE,) * 3 if x.dtype == torch.float64 else (OUTPUTS, PIXELS, INPUTS)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        product_kernel[triton.cdiv(pixels, tile[1]), triton.cdiv(channels, tile[0]), images](
            y, x, weight, weight if bias is None else bias, channels, pixels, *strides,
            BIAS=bias is not None, OUTPUTS=tile[0], PIXELS=tile[1], INPUTS=tile[2], enable_fp_fusion=False,
        )  # fmt: skip
    return y

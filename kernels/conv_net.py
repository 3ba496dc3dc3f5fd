"""Convolutions on a GPU, each a product whose left side is read from the image, with an activation.

The tiles are the same for every batch, and taps and channels are added in the same order, so an image's bits
do not depend on the images beside it. Products of float32 take three passes of TF32.
"""

import torch
import triton
import triton.language as tl

PIXELS, OUTPUTS, INPUTS = 64, 32, 32  # a tile of results, and the channels it adds at a time
WARPS = 8  # of a tile: with four its numbers do not fit their registers
SIDE = 16  # each of the three in float64, whose products are added without tensor cores


@triton.jit
def convolution_kernel(
    y, x, weight, bias, slope, pixels, height, width, inputs, outputs, bias_stride,
    x_image, x_row, x_column, x_channel, y_image, y_row, y_column, y_channel,
    weight_output, weight_input, weight_row, weight_column,
    TAPS: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """A tile of pixels, counted through all images, by outputs."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    unit = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    column, row, image = pixel % width, pixel // width % height, pixel // (width * height)
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    total = tl.zeros((PIXELS, OUTPUTS), REAL)
    for tap in range(TAPS * TAPS):
        down, right = tap // TAPS, tap % TAPS
        from_row, from_column = row + down - TAPS // 2, column + right - TAPS // 2
        there = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
        there = there & (pixel < pixels)
        start_x = image * x_image + from_row * x_row + from_column * x_column
        start_weight = unit.to(tl.int64) * weight_output + down * weight_row + right * weight_column
        for start in range(0, inputs, INPUTS):
            i = start + tl.arange(0, INPUTS)
            here = there[:, None] & (i[None, :] < inputs)
            a = tl.load(x + start_x[:, None] + i[None, :].to(tl.int64) * x_channel, mask=here, other=0.0)
            here = (i[:, None] < inputs) & (unit[None, :] < outputs)
            w = tl.load(weight + start_weight[None, :] + i[:, None] * weight_input, mask=here, other=0.0)
            if DOUBLE:
                total += tl.sum(a.to(REAL)[:, :, None] * w.to(REAL)[None, :, :], axis=1)
            else:
                total = tl.dot(a.to(REAL), w.to(REAL), total, input_precision="tf32x3")
    inside = (pixel[:, None] < pixels) & (unit[None, :] < outputs)
    if BIAS:
        place = bias + image[:, None] * bias_stride + unit[None, :]
        total += tl.load(place, mask=inside, other=0.0).to(REAL)
    if ACTIVATION == "relu":
        total = tl.where(total < 0.0, 0.0, total)
    elif ACTIVATION == "leaky_relu":
        total = tl.where(total < 0.0, total * slope, total)
    place = image * y_image + row * y_row + column * y_column
    place = place[:, None] + unit[None, :].to(tl.int64) * y_channel
    tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)


def conv_net(x, first, first_bias, second, second_bias, third, third_bias, slope, channels_last):
    """What `fastgen.ops.conv_net` returns."""
    h = x if channels_last else x.permute(0, 2, 3, 1)
    activation = "relu" if slope == 0 else "leaky_relu"
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    for weight, bias in ((first, first_bias), (second, second_bias)):
        between = h.new_empty((*h.shape[:3], len(weight)), dtype=wide)
        h = _convolve(h, weight, bias, slope, activation, between)
    images, height, width = h.shape[:3]
    if channels_last:
        y = x.new_empty((images, height, width, len(third)))
        return _convolve(h, third, third_bias, slope, "none", y)
    y = x.new_empty((images, len(third), height, width))
    _convolve(h, third, third_bias, slope, "none", y.permute(0, 2, 3, 1))
    return y


def _convolve(x, weight, bias, slope, activation, y):
    """y (N, H, W, outputs) of x (N, H, W, inputs), both in any strides."""
    images, height, width, inputs = x.shape
    outputs, pixels = len(weight), images * height * width
    if pixels == 0:
        return y
    tile = (SIDE,) * 3 if x.dtype == torch.float64 else (PIXELS, OUTPUTS, INPUTS)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        convolution_kernel[triton.cdiv(pixels, tile[0]), triton.cdiv(outputs, tile[1])](
            y, x, weight, weight if bias is None else bias, float(slope), pixels, height, width, inputs,
            outputs, outputs if bias is not None and bias.dim() == 2 else 0, *x.stride(), *y.stride(),
            *weight.stride(), TAPS=weight.shape[2], BIAS=bias is not None, ACTIVATION=activation,
            PIXELS=tile[0], OUTPUTS=tile[1], INPUTS=tile[2], enable_fp_fusion=False,
            num_warps=WARPS,
        )  # fmt: skip
    return y

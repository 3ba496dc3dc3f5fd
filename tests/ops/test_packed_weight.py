"""The weights of packed_linear: their formats, and what is refused."""

import pytest
import torch
from packed_linear_inputs import FORMATS, GGUF, make

from fastgen.ops import PackedWeight


@pytest.mark.parametrize("format", GGUF)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0, 0.0])
def test_packing_and_unpacking_are_those_of_gguf(format, scale):
    gguf = pytest.importorskip("gguf")
    weight = scale * torch.randn(37, 96, generator=torch.Generator().manual_seed(1))
    weight += 0.0  # no negative zero
    weight[3] = 2.0
    weight[4, :32] = 0.0
    kind = gguf.GGMLQuantizationType[format.upper()]
    theirs = gguf.quants.quantize(weight.numpy(), kind)
    packed = PackedWeight.pack(weight, format)
    assert torch.equal(packed.data, torch.from_numpy(theirs))
    assert torch.equal(packed.unpack(), torch.from_numpy(gguf.quants.dequantize(theirs, kind)))


@pytest.mark.parametrize("format", FORMATS)
def test_packing_loses_no_more_than_the_bits_of_the_format(format):
    weight = torch.rand(50, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    allowed = {"float32": 0, "bfloat16": 2**-9, "int8": 1 / 254, "q4_0": 1 / 8 + 1e-3, "q4_1": 1 / 15 + 2e-3}
    assert (PackedWeight.pack(weight, format).unpack() - weight).abs().max() <= allowed.get(
        format, 1 / 254 + 1e-3
    )


@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_those_of_the_whole(format):
    weight = make(1, 64, 37, format)[1]
    indices = torch.tensor([[0, 36], [17, 17]])
    assert torch.equal(weight.rows(indices), weight.unpack()[indices])
    assert torch.equal(weight.rows(indices.int()), weight.unpack()[indices])
    assert weight.rows(indices[:0]).shape == (0, 2, 64)
    for bad in (37, -1):
        with pytest.raises(IndexError, match="wanted 0 to 36"):
            weight.rows(torch.tensor([bad]))


def blocks(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def bytes_of(*shape):
    return torch.zeros(shape, dtype=torch.int8)


BAD_WEIGHTS = [
    (lambda: PackedWeight.pack(torch.ones(2, 33), "q4_0"), ValueError, "in is 33, wanted a multiple of 32"),
    (lambda: PackedWeight.pack(torch.ones(2, 32), "q5_0"), ValueError, "format is 'q5_0', wanted one of fl"),
    (lambda: PackedWeight.pack(torch.ones(32), "q4_0"), ValueError, "weight has shape (32,), wanted (out, "),
    (lambda: PackedWeight.pack(torch.ones(2, 32).int(), "int8"), TypeError, "weight is torch.int32"),
    (lambda: PackedWeight.pack([1.0], "int8"), TypeError, "weight is list, wanted a dense floating tensor"),
    (lambda: PackedWeight.pack(torch.full((2, 32), 1e9), "q8_0"), ValueError, "weight holds 1e+09, wanted "),
    (lambda: PackedWeight.pack(torch.full((2, 32), torch.nan), "q4_1"), ValueError, "weight holds nan"),
    (lambda: PackedWeight.pack(torch.full((2, 32), torch.inf), "int8"), ValueError, "weight holds inf"),
    (lambda: PackedWeight(blocks(35), "q4_0", (2, 32)), ValueError, "data has shape (35,), wanted (2, 18)"),
    (lambda: PackedWeight(torch.zeros(36), "q4_0", (2, 32)), TypeError, "data is torch.float32, wanted a "),
    (lambda: PackedWeight(blocks(2, 36)[:, ::2], "q4_0", (2, 32)), ValueError, "data has strides (36, 2)"),
    (lambda: PackedWeight(torch.zeros(32, 16), "float32", (2, 32)), ValueError, "wanted (1, 32, 16) for a "),
    (lambda: PackedWeight(bytes_of(1, 1, 16, 4), "int8", (2, 3)), TypeError, "scale is NoneType"),
    (
        lambda: PackedWeight(bytes_of(1, 1, 16, 4), "int8", (2, 3), torch.ones(3)),
        ValueError,
        "scale has shape (3,)",
    ),
    (lambda: PackedWeight(blocks(36), "q4_0", (2, 32), torch.ones(2)), TypeError, "scale is torch.float32"),
    (lambda: PackedWeight(blocks(36), "q4_0", (-2, 32)), ValueError, "shape is (-2, 32)"),
]


@pytest.mark.parametrize("build, error, message", BAD_WEIGHTS, ids=[message for *_, message in BAD_WEIGHTS])
def test_bad_weights_are_refused_in_one_sentence(build, error, message):
    with pytest.raises(error) as caught:
        build()
    assert message in str(caught.value) and "\n" not in str(caught.value)

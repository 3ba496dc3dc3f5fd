"""The op packed_linear: the memory it touches, the shapes it takes, and what it refuses."""

import ctypes
import mmap

import numpy as np
import pytest
import torch
from packed_linear_inputs import FORMATS, HERE, ISAS, NUMBER, make

from fastgen import native, use_backend
from fastgen.ops import PackedWeight, packed_linear
from fastgen.testing import fenced


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 32, 2), (3, 96, 5), (6, 160, 18), (29, 32, 35)])
def test_native_writes_nothing_outside(isa, format, rows, inputs, outputs):
    x, weight, bias, residual = make(rows, inputs, outputs, format)
    with native.instruction_set(isa), use_backend("native"), fenced((rows, outputs), torch.float32) as y:
        torch.ops.fastgen_native.packed_linear(
            y, x, weight.data, weight.scale, NUMBER[format], bias, 1, residual
        )
        assert torch.equal(y, packed_linear(x, weight, bias, activation="relu", residual=residual))


@pytest.fixture
def guarded():
    """A copy of a tensor whose last byte is followed by memory that may not be touched, read-only itself."""
    libc, kept = ctypes.CDLL(None, use_errno=True), []

    def place(tensor):
        size = tensor.numel() * tensor.element_size()
        pages = -(-size // mmap.PAGESIZE) + 1
        memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        start = (pages - 1) * mmap.PAGESIZE
        found = whole[start - size : start].view(tensor.dtype).view(tensor.shape)
        found.copy_(tensor)
        address = ctypes.c_void_p(whole.data_ptr())
        assert libc.mprotect(address, ctypes.c_size_t(start), mmap.PROT_READ) == 0
        after = ctypes.c_void_p(whole.data_ptr() + start)
        assert libc.mprotect(after, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        kept.append((memory, whole))
        return found

    yield place
    for memory, whole in kept:
        libc.mprotect(ctypes.c_void_p(whole.data_ptr()), ctypes.c_size_t(len(memory)), mmap.PROT_WRITE)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "rows, inputs, outputs", [(1, 32, 3), (1, 64, 4), (2, 96, 16), (9, 128, 17), (9, 160, 33)]
)
def test_read_only_memory_is_not_read_past_its_end(guarded, isa, format, rows, inputs, outputs):
    x, weight, bias, residual = make(rows, inputs, outputs, format)
    scale = None if weight.scale is None else guarded(weight.scale)
    mapped = PackedWeight(guarded(weight.data), format, weight.shape, scale)
    with native.instruction_set(isa), use_backend("native"):
        wanted = packed_linear(x, weight, bias, residual=residual)
        came = packed_linear(guarded(x), mapped, guarded(bias), residual=guarded(residual))
    assert torch.equal(came, wanted)


def test_a_file_is_mapped_at_any_address(tmp_path):
    x, weight, bias, _ = make(5, 64, 21)
    (tmp_path / "weights").write_bytes(b"?" * 13 + weight.data.numpy().tobytes())
    with open(tmp_path / "weights", "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    data = torch.frombuffer(memory, dtype=torch.uint8, offset=13)
    mapped = PackedWeight(data, "q4_1", (21, 64))
    assert torch.equal(packed_linear(x, mapped, bias), packed_linear(x, weight, bias))


def test_more_than_2_to_the_31_bytes_of_weights():
    inputs, outputs = 2**15, 2**16 + 3
    data = torch.from_numpy(np.zeros((2**12 + 1, inputs // 4, 16, 4), np.int8))  # zeros that take no memory
    data[-1, -1, (outputs - 1) % 16, -1], scale = 3, torch.ones(outputs)
    x = torch.zeros(1, inputs)
    x[0, -1] = 2.0
    y = packed_linear(x, PackedWeight(data, "int8", (outputs, inputs), scale))
    assert abs(y[0, -1] - 6.0) < 1e-6 and not y[0, :-1].any()


@pytest.mark.parametrize("backend", HERE)
def test_any_layout_and_number_of_dimensions(backend):
    x, weight, bias, residual = make(6, 64, 4)
    with use_backend(backend):
        wanted = packed_linear(x, weight, bias, residual=residual)
        strided = packed_linear(x.T.contiguous().T, weight, bias, residual=residual.T.contiguous().T)
        assert torch.equal(strided, wanted)
        deep = packed_linear(x.view(3, 1, 2, 64), weight, bias, residual=residual.view(3, 1, 2, 4))
        assert torch.equal(deep, wanted.view(3, 1, 2, 4))
        assert packed_linear(x[0], weight, bias).shape == (4,)
        assert packed_linear(x.new_empty(2, 0, 64), weight).shape == (2, 0, 4)
        expanded = packed_linear(x[:1].expand(5, 64), weight, bias)
        assert torch.allclose(expanded, packed_linear(x[:1], weight, bias).expand(5, 4))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("format", FORMATS)
def test_sizes_of_zero(backend, format):
    bias = torch.arange(4.0)
    with use_backend(backend):
        no_inputs = PackedWeight.pack(torch.empty(4, 0), format)
        assert torch.equal(packed_linear(torch.empty(3, 0), no_inputs, bias), bias.expand(3, 4))
        no_outputs = PackedWeight.pack(torch.empty(0, 32), format)
        assert packed_linear(torch.ones(3, 32), no_outputs).shape == (3, 0)
        assert no_outputs.unpack().shape == (0, 32) and no_inputs.unpack().shape == (4, 0)


BAD = [
    ({"x": [1.0]}, TypeError, "x is list, wanted a dense float32"),
    ({"x": torch.ones(3, 32).half()}, TypeError, "x is torch.float16, wanted"),
    ({"x": torch.ones(3, 33)}, ValueError, "x has shape (3, 33), wanted (..., 32) for this weight"),
    ({"x": torch.tensor(1.0)}, ValueError, "x has shape (), wanted (..., 32)"),
    ({"weight": torch.ones(4, 32)}, TypeError, "weight is torch.float32, wanted a PackedWeight"),
    ({"bias": torch.ones(5)}, ValueError, "bias has shape (5,), wanted (4,)"),
    ({"bias": 0.5}, TypeError, "bias is float"),
    ({"residual": torch.ones(3, 5)}, ValueError, "residual has shape (3, 5), wanted (3, 4)"),
    ({"residual": torch.ones(3, 4).double()}, TypeError, "residual is torch.float64, wanted a dense torch.f"),
    ({"activation": "swish"}, ValueError, "activation is 'swish', wanted one of none, relu"),
    ({"x": torch.ones(3, 32, device="meta")}, ValueError, "weight is on cpu, wanted meta as x"),
]


@pytest.mark.parametrize("changes, error, message", BAD, ids=[message for *_, message in BAD])
def test_bad_input_is_refused_in_one_sentence(changes, error, message):
    arguments = {"x": torch.ones(3, 32), "weight": make(1, 32, 4)[1], **changes}
    positional = [arguments.pop("x"), arguments.pop("weight")]
    with pytest.raises(error) as caught:
        packed_linear(*positional, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(3, 5)}, "bad weight"),
        ({0: torch.zeros(2, 4)}, "bad y"),
        ({0: torch.zeros(3, 4).double()}, "bad y"),
        ({1: torch.zeros(3, 64)}, "bad weight"),
        ({1: torch.zeros(32, 3).T}, "bad x"),
        ({1: torch.zeros(3, 30)}, "bad x"),
        ({2: torch.zeros(79, dtype=torch.uint8)}, "bad weight"),
        ({2: torch.zeros(80, dtype=torch.int8)}, "bad weight"),
        ({3: torch.zeros(4)}, "bad scale"),
        ({4: 6}, "bad format"),
        ({4: 2}, "bad weight"),
        ({5: torch.zeros(3)}, "bad bias"),
        ({6: 10}, "bad activation"),
        ({7: torch.zeros(3, 4).double()}, "bad residual"),
    ],
)
def test_the_binding_guards_the_memory(change, message):
    x, weight, bias, residual = make(3, 32, 4)
    arguments = [torch.zeros(3, 4), x, weight.data, None, NUMBER["q4_1"], bias, 0, residual]
    torch.ops.fastgen_native.packed_linear(*arguments)
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.packed_linear(*arguments)

"""The op conv_net: its values and gradients, its bits, its memory, and what it refuses."""

import math
from contextlib import ExitStack

import pytest
import torch
from torch.nn import functional as F

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.nn.networks import ConvNet
from fastgen.ops import conv_net
from fastgen.ops._registry import OPS
from fastgen.testing import fenced

ISAS = native.usable_isas()
HERE = [name for name in OPS["conv_net"].implementations if usable("conv_net", name, "cpu")]
LIMITS = [(torch.float32, 3e-6), (torch.float64, 1e-14), (torch.bfloat16, 8e-3)]
SIZES = [((2, 6, 5, 4), 64, 12), ((3, 5, 7, 3), 20, 2), ((1, 2, 1, 1), 5, 4), ((2, 3, 3, 2), 100, 33)]
RUNS = [
    (name, isa, *size)
    for name in HERE
    for isa in (ISAS if name == "native" else ISAS[-1:])
    for size in (SIZES[1:3] if name == "triton" else SIZES)  # whose interpreter takes seconds for the others
]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(shape, hidden, outputs, dtype=torch.float64, sides=(3, 1, 3), each=False):
    """x, weights and biases; of `each` image the first bias is its own, and the second is None."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    channels = (shape[1], hidden, hidden, outputs)
    weights = [
        (i * k * k) ** -0.5 * normal(o, i, k, k, seed=k + i, dtype=wide)
        for i, o, k in zip(channels, channels[1:], sides, strict=False)
    ]
    biases = [normal(o, seed=9 + o, dtype=wide) for o in channels[1:]]
    if each:
        biases[:2] = normal(shape[0], hidden, seed=4, dtype=wide), None
    return normal(*shape, dtype=dtype), weights, biases


def plain(x, weights, biases, slope=0.0, dtype=torch.float64):
    """By conv2d."""
    h = x.to(dtype)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = F.conv2d(h, weight.to(dtype), padding=weight.shape[2] // 2)
        h = h if bias is None else h + bias.to(dtype)[..., None, None]
        h = torch.where(h < 0, slope * h, h) if i < 2 else h
    return h


@pytest.mark.parametrize("backend, isa, shape, hidden, outputs", RUNS)
@pytest.mark.parametrize("dtype, limit", LIMITS)
@pytest.mark.parametrize("each, slope", [(False, 0.0), (True, 0.2)])
def test_values(shape, hidden, outputs, each, slope, dtype, limit, isa, backend):
    x, weights, biases = make(shape, hidden, outputs, dtype, each=each)
    wanted = plain(x, weights, biases, slope)
    with native.instruction_set(isa), use_backend(backend):
        y = conv_net(x, weights, biases, slope=slope)
        last = conv_net(x.movedim(1, -1), weights, biases, slope=slope, dim=-1)
    assert y.dtype == last.dtype == dtype and y.is_contiguous() and last.is_contiguous()
    assert ((y.double() - wanted).abs() <= limit * (2 + wanted.abs())).all()
    assert torch.equal(last.movedim(-1, 1), y) or backend == "reference"


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("sides", [(1, 1, 1), (1, 3, 1), (3, 3, 3), (1, 1, 3)])
def test_kernels_of_one_and_of_nine(sides, backend):
    x, weights, biases = make((2, 3, 6, 5), 20, 5, sides=sides)
    with use_backend(backend):
        torch.testing.assert_close(conv_net(x, weights, biases), plain(x, weights, biases))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("each", [False, True])
def test_gradients(each, backend):
    x, weights, biases = make((2, 3, 4, 5), 6, 4, each=each)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases) if t is not None]
    with use_backend(backend):
        ours = torch.autograd.grad(conv_net(x, weights, biases, slope=0.1).cos().sum(), leaves)
    theirs = torch.autograd.grad(plain(x, weights, biases, 0.1).cos().sum(), leaves)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("context", [0, 3])
def test_the_layer_is_the_same_in_training_and_in_evaluation(context):
    torch.manual_seed(0)
    net = ConvNet(5, 4, hidden=20, context=context).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, given = normal(3, 6, 5, 5), normal(3, 3, seed=1) if context else None
    torch.testing.assert_close(net.eval()(x, given), net.train()(x, given))


# Bits and memory.


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape, hidden, outputs", [((9, 6, 16, 16), 64, 12), ((5, 4, 13, 3), 33, 8)])
def test_an_images_bits_depend_on_that_image_alone(shape, hidden, outputs, dtype, isa):
    x, weights, biases = make(shape, hidden, outputs, dtype, each=True)
    before = torch.get_num_threads()
    try:
        with native.instruction_set(isa), use_backend("native"):
            torch.set_num_threads(1)
            whole = conv_net(x, weights, biases)
            for threads in (1, 2, 4, 7):  # a single image is cut into bands, one for each of them
                torch.set_num_threads(threads)
                parts = [
                    conv_net(x[i : i + 1], weights, [biases[0][i : i + 1], *biases[1:]])
                    for i in range(len(x))
                ]
                assert torch.equal(torch.cat(parts), whole)
                assert torch.equal(conv_net(x, weights, biases), whole)
    finally:
        torch.set_num_threads(before)


def test_large_images_are_cut_into_bands():
    x, weights, biases = make((1, 3, 70, 90), 64, 6, torch.float32)
    wanted = plain(x, weights, biases)
    assert ((conv_net(x, weights, biases) - wanted).abs() <= 1e-5 * (2 + wanted.abs())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_avx2_and_avx512_give_the_same_bits(dtype):
    if "avx512" not in ISAS:
        pytest.skip("this CPU has no AVX-512")
    given = make((2, 6, 8, 8), 40, 12, dtype)
    with native.instruction_set("avx2"):
        wanted = conv_net(*given)
    with native.instruction_set("avx512"):
        assert torch.equal(conv_net(*given), wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape, hidden, outputs", SIZES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_native_writes_every_element_and_nothing_else(channels_last, shape, hidden, outputs, dtype, isa):
    x, weights, biases = make(shape, hidden, outputs, dtype)
    wanted = plain(x, weights, biases).to(dtype)
    x = x.movedim(1, -1) if channels_last else x
    with native.instruction_set(isa), ExitStack() as stack:

        def copy(t):
            return stack.enter_context(fenced(t.shape, dtype)).copy_(t)

        given = [copy(t) for pair in zip(weights, biases, strict=True) for t in pair]
        form = wanted.movedim(1, -1).shape if channels_last else wanted.shape
        y = stack.enter_context(fenced(form, dtype))
        torch.ops.fastgen_native.conv_net(y, copy(x), *given, 0.0, channels_last)
        torch.testing.assert_close(y.movedim(-1, 1) if channels_last else y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5), (5, 2), (10,), (2, 5, 1)])
def test_native_refuses_a_bias_of_other_images(shape):
    x, (first, second, third), _ = make((2, 3, 4, 5), 5, 4, torch.float32)
    y, bias = torch.empty(2, 4, 4, 5), torch.zeros(shape)
    with pytest.raises(RuntimeError, match="bad bias"):
        torch.ops.fastgen_native.conv_net(y, x, first, bias, second, None, third, None, 0.0, False)


def test_memory_in_any_order():
    x, weights, biases = make((3, 4, 6, 5), 20, 8, torch.float32)
    wanted = conv_net(x, weights, biases)
    for other in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(conv_net(other, weights, biases), wanted)
    assert torch.equal(conv_net(torch.cat([x, x], 1)[:, 4:], weights, biases), wanted)
    for order in ((0, 2, 3, 1), (2, 3, 0, 1), (1, 0, 2, 3)):
        back = [order.index(i) for i in range(4)]
        others = [w.permute(order).contiguous().permute(back) for w in weights]
        assert torch.equal(conv_net(x, others, biases), wanted)
    one = conv_net(x[:1].expand(3, 4, 6, 5), weights, biases)
    assert torch.equal(one, wanted[:1].expand_as(one))


@pytest.mark.parametrize("backend", HERE)
def test_nan_stays_near_and_infinity_goes_through_relu(backend):
    x, weights, biases = make((2, 3, 7, 7), 8, 4, torch.float32)
    with use_backend(backend):
        wanted = conv_net(x, weights, biases)
        x[1, 2, 3, 0] = math.nan
        y = conv_net(x, weights, biases)
        weights = [w.abs() for w in weights]
        below = conv_net(torch.full_like(x, -math.inf), weights, biases)
    assert y[1, :, 1:6, :3].isnan().all() and int((y != wanted).sum()) == 5 * 3 * 4
    assert below.isfinite().all()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("shape", [(0, 4, 2, 2), (3, 4, 0, 5), (3, 4, 5, 0)])
def test_nothing_comes_of_nothing(shape, backend):
    x, weights, biases = make(shape, 6, 8)
    with use_backend(backend):
        y = conv_net(x.requires_grad_(), weights, biases)
    assert y.shape == (shape[0], 8, *shape[2:])
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


X, WEIGHTS, BIASES = make((2, 3, 4, 4), 5, 6)
BAD = [
    ({"x": 3}, TypeError, "x is int, wanted a dense float32"),
    ({"x": X.half()}, TypeError, "x is torch.float16, wanted a dense float32"),
    ({"x": X[0]}, ValueError, r"x has shape \(3, 4, 4\), wanted \(N, C, H, W\)"),
    ({"weights": WEIGHTS[:2]}, ValueError, "weights is of length 2, wanted a sequence of three"),
    ({"weights": WEIGHTS[0]}, ValueError, "weights is Tensor, wanted a sequence of three"),
    ({"biases": None}, ValueError, "biases is NoneType, wanted a sequence of three"),
    ({"weights": [w.float() for w in WEIGHTS]}, TypeError, "the first of weights is torch.float32, wanted"),
    ({"weights": [WEIGHTS[0], None, WEIGHTS[2]]}, TypeError, "the second of weights is NoneType, wanted"),
    ({"weights": WEIGHTS[::-1]}, ValueError, r"the first of weights has shape \(6, 5, 3, 3\), wanted"),
    ({"weights": [WEIGHTS[0][..., :2], *WEIGHTS[1:]]}, ValueError, "with k 1 or 3"),
    ({"weights": [WEIGHTS[0][:0], *WEIGHTS[1:]]}, ValueError, "the first of weights has no outputs"),
    ({"weights": [WEIGHTS[0].to("meta"), *WEIGHTS[1:]]}, ValueError, "is on meta, wanted cpu as x"),
    ({"biases": [BIASES[0][:2], None, None]}, ValueError, r"the first of biases has shape \(2,\), wanted"),
    ({"biases": [None, None, BIASES[2].float()]}, TypeError, "the third of biases is torch.float32"),
    ({"x": X, "dim": -1}, ValueError, "the first of weights has shape"),
    ({"dim": 2}, ValueError, "dim is 2, wanted 1 or -1"),
    ({"slope": "0"}, TypeError, "slope is str, wanted a number"),
    ({"slope": math.nan}, ValueError, "slope is nan, wanted a finite number"),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_input_gets_a_sentence(change, error, message):
    arguments = {"x": X, "weights": WEIGHTS, "biases": BIASES} | change
    with pytest.raises(error, match=message):
        conv_net(**arguments)

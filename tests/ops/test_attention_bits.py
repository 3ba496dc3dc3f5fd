"""The op attention: its bits, its memory, and what it refuses."""

import contextlib

import pytest
import torch
from attention_inputs import DTYPES, HERE, ISAS, bias_of, gradients, make, mask_of

from fastgen import native, use_backend
from fastgen.ops import attention
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import REFERENCE

# A row's bits depend on its query and its keys alone.


@contextlib.contextmanager
def threads(count):
    with with_threads(count), use_backend("native"):
        yield


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_company(isa, dtype):
    q, k, v = make((17, 4, 2, 75, 75, 24, 10), dtype)
    with native.instruction_set(isa), use_backend("native"):
        whole, lse = attention(q, k, v, causal="lower_right", return_lse=True)
        order = torch.randperm(17, generator=torch.Generator().manual_seed(5))
        assert torch.equal(attention(q[order], k[order], v[order], causal="lower_right"), whole[order])
        for batch in (1, 2, 5):
            part = attention(q[:batch], k[:batch], v[:batch], causal="lower_right")
            assert torch.equal(part, whole[:batch])
        for queries in (1, 2, 20, 70):  # in chunks, the last one as decoding sees it
            part, sums = attention(q[:, :, -queries:], k, v, causal="lower_right", return_lse=True)
            assert torch.equal(part, whole[:, :, -queries:]) and torch.equal(sums, lse[:, :, -queries:])
        early = attention(q[:, :, :31], k[:, :, :31], v[:, :, :31], causal="upper_left")
        assert torch.equal(early, whole[:, :, :31])
        one_head = attention(q[:, 2:3], k[:, 1:], v[:, 1:], causal="lower_right")
        assert torch.equal(one_head, whole[:, 2:3])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("before, behind", [(1, 0), (5, 2), (64, 64), (70, 131)])
def test_padding_on_either_side_leaves_the_bits(isa, before, behind):
    q, k, v = make((2, 4, 2, 75, 75, 24, 10))
    length = before + 75 + behind
    mask = torch.zeros(length, dtype=torch.bool)
    mask[before : before + 75] = True

    def padded(x):
        whole = torch.full((2, x.shape[1], length, x.shape[3]), 9.0)
        whole[:, :, before : before + 75] = x
        return whole

    with native.instruction_set(isa), use_backend("native"):
        wanted = gradients(lambda *x: attention(*x, causal="upper_left"), (q, k, v))
        leaves = [padded(x).requires_grad_() for x in (q, k, v)]
        out = attention(*leaves, causal="upper_left", mask=mask)[:, :, before : before + 75]
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        found = [out, *(x[:, :, before : before + 75] for x in torch.autograd.grad(out, leaves, grad))]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 700, 1100, 16, 16), (5, 4, 2, 70, 90, 16, 20)], ids=str)
def test_any_number_of_threads_gives_the_same_bits_forward_and_backward(isa, shape):
    q, k, v = make(shape)
    bias = bias_of(shape[3:5])
    found = []
    with native.instruction_set(isa):
        for count in (1, 2, 5):  # few groups of heads for many threads are divided in another way
            with threads(count):
                found.append(gradients(lambda *x: attention(*x[:3], bias=x[3]), (q, k, v, bias)))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"causal": "lower_right", "window": 9},
        {"softcap": 1.5, "bias": bias_of((75, 150))},
        {"mask": mask_of((2, 1, 75, 150)), "bias": bias_of((1, 150))},
        {"mask": mask_of((150,)), "dropout_p": 0.3, "seed": 3},
    ],
    ids=" ".join,
)
def test_every_instruction_set_gives_what_the_specification_gives(isa, dtype, options):
    given = make((2, 4, 2, 75, 150, 24, 10), dtype)
    found = []
    with native.instruction_set(isa):
        for backend in ("reference", "native"):
            with use_backend(backend):
                found.append(gradients(lambda *x: attention(*x, **options), given))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= REFERENCE["attention"][dtype] * (1 + b.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_with_fma_agree_to_the_bit(dtype):
    both = [isa for isa in ("avx2", "avx512") if isa in ISAS]
    if len(both) < 2:
        pytest.skip("this CPU has not both")
    q, k, v = make((2, 4, 2, 75, 150, 24, 10), dtype)
    found = []
    for isa in both:
        with native.instruction_set(isa), use_backend("native"):
            found.append(gradients(lambda *x: attention(*x, causal="lower_right"), (q, k, v)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Memory.


@pytest.mark.skipif("native" not in HERE, reason="the C++ extension is not here")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2, 1, 3, 5, 7, 9), (2, 1, 1, 17, 70, 16, 1)], ids=str)
def test_native_reads_and_writes_nothing_outside(isa, dtype, shape):
    given = [x.contiguous() for x in make(shape, dtype)]
    bias = bias_of((shape[0], shape[1], shape[3], shape[4])).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    mask = mask_of(bias.shape)
    out = (shape[0], shape[1], shape[3], shape[6])
    grads = [torch.ones(out, dtype=dtype), torch.ones(out[:3], dtype=bias.dtype)]
    shapes = [(out, dtype), (out[:3], bias.dtype), *((x.shape, bias.dtype) for x in (*given, bias))]
    options = (None, None, 1, 0, 0.0, 0.5, 0.0, 0, None)
    with native.instruction_set(isa), use_backend("native"), contextlib.ExitStack() as stack:
        fence = stack.enter_context
        inside = [fence(fenced(tuple(x.shape), x.dtype)).copy_(x) for x in (*given, bias, mask, *grads)]
        made = [fence(fenced(tuple(sides), kind)) for sides, kind in shapes]
        torch.ops.fastgen_native.attention(*made[:2], *inside[:5], *options)
        made[5].zero_()
        torch.ops.fastgen_native.attention_backward(*made[2:], *inside[5:], *made[:2], *inside[:5], *options)
        leaves = [x.clone().requires_grad_() for x in (*given, bias)]
        wanted = attention(
            *leaves[:3], bias=leaves[3], mask=mask, causal="upper_left", scale=0.5, return_lse=True
        )
        slopes = torch.autograd.grad(wanted, leaves, grads)
        for a, b in zip(made, (*wanted, *slopes), strict=True):
            assert torch.equal(a.to(b.dtype), b)


@pytest.mark.skipif("native" not in HERE, reason="the C++ extension is not here")
@pytest.mark.parametrize(
    "place, value, message",
    [
        (0, torch.zeros(1, 2, 3, 8), "bad out"),
        (1, torch.zeros(1, 2, 4), "bad lse"),
        (2, torch.zeros(1, 2, 3, 6), "bad k"),
        (3, torch.zeros(1, 3, 5, 7), "bad k"),
        (4, torch.zeros(1, 1, 4, 9), "bad v"),
        (5, torch.zeros(1, 2, 3, 4), "bad bias"),
        (6, torch.zeros(1, 2, 3, 5), "bad mask"),
        (7, torch.tensor([0, 2]), "bad q, k or v"),
        (9, 3, "bad options"),
    ],
)
def test_the_binding_guards_the_memory(place, value, message):
    q, k, v = make((1, 2, 1, 3, 5, 7, 9))
    arguments = [torch.zeros(1, 2, 3, 9), torch.zeros(1, 2, 3), q, k, v]
    arguments += [torch.zeros(1, 2, 3, 5), torch.ones(1, 2, 3, 5, dtype=torch.bool)]
    arguments += [None, None, 0, 0, 0.0, 1.0, 0.0, 0, None]
    torch.ops.fastgen_native.attention(*arguments)
    arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.attention(*arguments)


# What is refused.

Q, K = torch.ones(2, 4, 5, 8), torch.ones(2, 2, 7, 8)
STARTS = torch.tensor([0, 2])
BAD = [
    ({"q": [1.0]}, TypeError, "q is list, wanted a dense tensor"),
    ({"q": Q.half()}, TypeError, "q is torch.float16, wanted float32, bfloat16 or float64"),
    ({"k": K.double()}, TypeError, "k is torch.float64, wanted torch.float32 as q"),
    ({"q": Q[0]}, ValueError, "q has shape (4, 5, 8), wanted (B, Hq, L, D)"),
    (
        {"q": Q[:, :3]},
        ValueError,
        "k has shape (2, 2, 7, 8), wanted (B, Hkv, S, D) with the D, the B",
    ),
    ({"k": K[..., :7]}, ValueError, "k has shape (2, 2, 7, 7), wanted (B, Hkv, S, D) with the D"),
    ({"k": K[:1], "v": K[:1]}, ValueError, "k has shape (1, 2, 7, 8), wanted"),
    ({"v": K[:, :, :6]}, ValueError, "v has shape (2, 2, 6, 8), wanted (2, 2, 7, 'Dv') as k"),
    ({"v": K[..., :0]}, ValueError, "v has shape (2, 2, 7, 0), wanted (B, Hkv, S, Dv) with at least one"),
    ({"v": K.to("meta")}, ValueError, "v is on meta, wanted cpu as q"),
    ({"causal": True}, ValueError, "causal is True, wanted 'upper_left', 'lower_right' or None"),
    ({"window": 0}, ValueError, "window is 0, wanted at least 1"),
    ({"softcap": -1.0}, ValueError, "softcap is -1.0, wanted a number > 0 or None"),
    ({"scale": float("nan")}, ValueError, "scale is nan, wanted a finite number"),
    ({"scale": "1"}, TypeError, "scale is str, wanted a number"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0, wanted 0 <= p < 1"),
    (
        {"bias": torch.ones(5, 6)},
        ValueError,
        "bias has shape (5, 6), wanted one that broadcasts to (2, 4",
    ),
    ({"bias": torch.ones(5, 7).bool()}, TypeError, "bias is torch.bool, wanted a dense floating tensor"),
    ({"mask": torch.ones(5, 7)}, TypeError, "mask is torch.float32, wanted a dense bool tensor"),
    (
        {"mask": torch.ones(1, 1, 1, 5, 7).bool()},
        ValueError,
        "mask has shape (1, 1, 1, 5, 7), wanted",
    ),
    ({"key_starts": STARTS}, ValueError, "key_starts came without query_starts, wanted both or none"),
    ({"dropout_p": 0.5, "seed": 1.5}, TypeError, "seed is 1.5, wanted an int or None"),
    ({"dropout_p": 0.5, "sample_ids": STARTS[:1]}, ValueError, "sample_ids has shape (1,), wanted (2,)"),
]
PACKED = [
    (
        {"query_starts": torch.tensor([0.0, 2.0])},
        TypeError,
        "query_starts is torch.float32, wanted an int32",
    ),
    ({"query_starts": STARTS[None]}, ValueError, "query_starts has shape (1, 2), wanted (sequences + 1,)"),
    ({"key_starts": torch.tensor([0, 1, 2])}, ValueError, "key_starts has shape (3,), wanted (2,)"),
    (
        {"query_starts": torch.tensor([0, 3])},
        ValueError,
        "query_starts is [0, 3], wanted numbers from 0",
    ),
    (
        {"key_starts": torch.tensor([0, 3, 1, 2]), "query_starts": torch.tensor([0, 1, 1, 2])},
        ValueError,
        "key_st",
    ),
    ({"mask": torch.ones(2, 2).bool()}, ValueError, "mask came with query_starts, wanted one of the two"),
]


@pytest.mark.parametrize("changes, error, message", BAD, ids=[message for *_, message in BAD])
def test_bad_input_is_refused_in_one_sentence(changes, error, message):
    arguments = {"q": Q, "k": K, "v": K, **changes}
    with pytest.raises(error) as caught:
        attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("changes, error, message", PACKED, ids=[message for *_, message in PACKED])
def test_bad_packing_is_refused_in_one_sentence(changes, error, message):
    x = torch.ones(2, 4, 8)
    with pytest.raises(error) as caught:
        attention(x, x, x, **{"query_starts": STARTS, "key_starts": STARTS, **changes})
    assert message in str(caught.value)

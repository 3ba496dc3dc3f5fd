"""The op attention: its values and gradients, what is masked, and the function of PyTorch's name."""

import itertools

import pytest
import torch
from attention_inputs import (
    DTYPES,
    HERE,
    SHAPES,
    bias_of,
    gradients,
    grads_of_everything,
    make,
    mask_of,
    sdpa,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from fastgen import use_backend
from fastgen.nn import scaled_dot_product_attention
from fastgen.ops import attention
from fastgen.ops._registry import OPS
from fastgen.tolerances import ROUNDING, allowed


def no_worse(came, theirs, exact, dtype):
    """At most six times what PyTorch loses, and what one rounding of the dtype costs."""
    assert came.dtype == dtype and came.shape == exact.shape
    assert ((came.double() - exact).abs() <= allowed(theirs, exact, dtype, losses=6, roundings=4)).all()


# Values and gradients are PyTorch's.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("addend", ["none", "causal", "bias", "mask"])
def test_result_and_gradients_lose_no_more_than_those_of_pytorch(backend, dtype, shape, addend):
    q, k, v = make(shape, dtype)
    scores = (shape[0], shape[1], shape[3], shape[4])
    ours, theirs = {}, {}
    if addend == "causal":
        ours, theirs = {"causal": "upper_left"}, {"is_causal": True}
    if addend == "bias":
        ours = {"bias": bias_of(scores).to(dtype)}
        theirs = {"attn_mask": ours["bias"]}
    if addend == "mask":
        ours = {"mask": mask_of(scores)}
        theirs = {"attn_mask": ours["mask"]}
    wide = {n: x.double() if n == "attn_mask" and x.is_floating_point() else x for n, x in theirs.items()}
    with use_backend(backend):
        came = gradients(lambda q, k, v: attention(q, k, v, **ours), (q, k, v))
    exact = gradients(lambda q, k, v: sdpa(q, k, v, **wide), (q.double(), k.double(), v.double()))
    if dtype == torch.float64:
        torch.testing.assert_close(came, exact, rtol=1e-9, atol=1e-11)
        return
    peer = gradients(lambda q, k, v: sdpa(q, k, v, **theirs), (q, k, v))
    for a, b, wanted in zip(came, peer, exact, strict=True):
        no_worse(a, b, wanted, dtype)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("sides", [(2, 4, 9, 11), (4, 9, 11), (1, 1, 9, 1), (11,), (2, 1, 1, 11), (4, 1, 1)])
def test_a_bias_of_any_shape_has_the_gradient_of_its_sums(backend, sides):
    q, k, v = make((2, 4, 2, 9, 11, 8, 8), torch.float64)
    bias = bias_of(sides).double()
    with use_backend(backend):
        came = gradients(lambda q, k, v, b: attention(q, k, v, bias=b), (q, k, v, bias))
    full = bias.expand(2, 4, 9, 11)
    wanted = gradients(lambda q, k, v, b: sdpa(q, k, v, attn_mask=b), (q, k, v, full))
    wanted[-1] = wanted[-1].sum_to_size(bias.shape)
    torch.testing.assert_close(came, wanted)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    "options",
    [
        {"causal": "lower_right"},
        {"causal": "lower_right", "window": 4},
        {"causal": "upper_left", "window": 1},
        {"window": 5},
        {"softcap": 0.7},
        {"softcap": 2.0, "bias": bias_of((9, 13)), "causal": "upper_left"},
        {"scale": -0.3, "mask": mask_of((13,))},
    ],
    ids=str,
)
def test_places_windows_and_caps_are_what_they_say(backend, options):
    q, k, v = make((2, 2, 1, 9, 13, 8, 6), torch.float64)
    given = dict(options)

    def plain(q, k, v):
        scores = q @ k.repeat_interleave(2, 1).mT * given.get("scale", 8**-0.5)
        if cap := given.get("softcap"):
            scores = cap * torch.tanh(scores / cap)
        scores = scores + given.get("bias", torch.zeros(())).double()
        for i, j in itertools.product(range(9), range(13)):
            place = i + (4 if given.get("causal") == "lower_right" else 0)
            ahead, far = j > place, abs(place - j) >= given.get("window", 99)
            if (ahead and "causal" in given) or far or not given.get("mask", torch.ones(13))[j]:
                hidden = torch.zeros(9, 13, dtype=torch.bool)
                hidden[i, j] = True
                scores = scores.masked_fill(hidden, -torch.inf)
        return torch.softmax(scores, -1).nan_to_num(0) @ v.repeat_interleave(2, 1)

    with use_backend(backend):
        came = gradients(lambda q, k, v: attention(q, k, v, **options), (q, k, v))
    seen = came[0].abs().sum(-1) > 0
    assert seen.all()  # every query of these sees something, so that softmax has no NaN
    torch.testing.assert_close(came, gradients(plain, (q, k, v)))


@pytest.mark.parametrize("backend", HERE)
def test_one_query_at_the_end_sees_all_keys(backend):
    q, k, v = make((2, 4, 2, 1, 50, 16, 16))
    with use_backend(backend):
        last = attention(q, k, v, causal="lower_right")
        torch.testing.assert_close(last, attention(q, k, v))
        first = attention(q, k, v, causal="upper_left")
    torch.testing.assert_close(first, v[..., :1, :].repeat_interleave(2, 1))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_log_sum_exp_is_that_of_the_scores_and_has_a_gradient(backend, dtype):
    q, k, v = make((2, 4, 2, 37, 45, 20, 12), dtype)

    def ours(q, k):
        return attention(q, k, v, causal="lower_right", return_lse=True)[1]

    def plain(q, k):
        scores = q.double() @ k.double().repeat_interleave(2, 1).mT * 20**-0.5
        hidden = torch.ones(37, 45, dtype=torch.bool).triu(9)
        return torch.logsumexp(scores.masked_fill(hidden, -torch.inf), -1)

    with use_backend(backend):
        came = gradients(ours, (q, k))
    wanted = gradients(plain, (q, k))
    assert came[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for a, b in zip(came, wanted, strict=True):
        assert (a.double() - b.double()).abs().max() <= 16 * ROUNDING[dtype] * (1 + b.abs().max())


# Strides.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides_give_the_same(backend, dtype):
    q, k, v = (x.contiguous() for x in make((2, 4, 2, 33, 70, 12, 9), dtype))
    bias, mask = bias_of((2, 1, 33, 70)), mask_of((1, 4, 1, 70))
    spread = [torch.stack([x, x + 1], -1)[..., 0] for x in (q, k, v)]  # a stride of 2 within rows
    turned = [x.mT.contiguous().mT for x in (q, k, v)]
    long = [x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2) for x in (q, k, v)]
    odd = torch.as_strided(mask[:, :, 0], (1, 4, 1, 70), (999, 70, 1234, 1))
    with use_backend(backend):
        wanted = gradients(lambda *x: attention(*x, bias=bias, mask=mask), (q, k, v))
        for given in (spread, turned, long):
            leaves = [x.requires_grad_() for x in given]
            out = attention(*leaves, bias=bias.mT.contiguous().mT, mask=odd)
            grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
            found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)) or (
                backend == "reference"
            )
            assert [x.stride() for x in found] == [x.stride() for x in wanted]


@pytest.mark.parametrize("backend", HERE)
def test_expanded_keys_and_masks(backend):
    q, k, v = make((3, 4, 1, 20, 30, 8, 8))
    k, v = (x[:1].expand(3, 4, 30, 8) for x in (k, v))
    mask = mask_of((1, 1, 1, 30)).expand(3, 4, 20, 30)
    with use_backend(backend):
        came = attention(q, k, v, mask=mask)
        wanted = attention(q, k.contiguous(), v.contiguous(), mask=mask.contiguous())
    torch.testing.assert_close(came, wanted, rtol=1e-6, atol=1e-6)
    assert came.stride() == F.scaled_dot_product_attention(q, k, v).stride()


# Large places, large products, nothing at all.


@pytest.mark.skipif("native" not in HERE, reason="the C++ extension is not here")
def test_places_beyond_31_bits():
    memory = torch.empty(2**31 + 2048, dtype=torch.bfloat16)  # of which a few pages are touched
    memory[:2048], far = 0, memory[2**31 :]
    q, k, v = make((1, 1, 1, 3, 5, 4, 4), torch.bfloat16)
    far[:20], far[1000:1020] = k.flatten(), v.flatten()
    keys, values = (memory.as_strided((2, 1, 5, 4), (2**31, 7, 4, 1), offset) for offset in (0, 1000))
    with use_backend("native"):
        out = attention(q.expand(2, 1, 3, 4), keys, values)
        assert torch.equal(out[1:], attention(q, k, v)) and (out[0] == 0).all()


@pytest.mark.parametrize("backend", HERE)
def test_products_beyond_half_precision_and_bfloat16_weights(backend):
    q, k, v = make((1, 1, 1, 8, 40, 64, 16))
    with use_backend(backend):
        out = attention(300 * q, 300 * k, v)
        torch.testing.assert_close(out, sdpa(300 * q, 300 * k, v), rtol=1e-3, atol=1e-3)
        ones = torch.ones(1, 1, 1000, 16, dtype=torch.bfloat16)
        averages = attention(torch.zeros_like(ones[:, :, :3]), torch.zeros_like(ones), ones)
    assert (averages == 1).all()  # weights of 1 / 1000 rounded to bfloat16 would not add up to 1


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("zero", ["B", "L", "S", "all"])
def test_sizes_of_zero(backend, zero):
    sizes = {"B": 2, "L": 5, "S": 7} | ({"B": 0, "L": 0, "S": 0} if zero == "all" else {zero: 0})
    q, k, v = make((sizes["B"], 4, 2, sizes["L"], sizes["S"], 8, 6))
    bias = torch.zeros(4, sizes["L"], sizes["S"])
    with use_backend(backend):
        for options in ({}, {"causal": "lower_right"}, {"bias": bias}):
            out, lse, grads = grads_of_everything(q, k, v, **options)
            assert out.shape == (sizes["B"], 4, sizes["L"], 6) and lse.shape == out.shape[:3]
            assert (out == 0).all() and (lse == -torch.inf).all()
            assert [g.shape for g in grads] == [q.shape, k.shape, v.shape]
            assert all((g == 0).all() for g in grads)


# Packed sequences.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"causal": "lower_right"}, {"causal": "upper_left", "window": 6}])
def test_packed_sequences_are_each_by_itself(backend, dtype, options):
    lengths, key_lengths = (3, 0, 70, 9, 2), (8, 4, 70, 0, 1)
    starts, key_starts = (torch.tensor([0, *n]).cumsum(0) for n in (lengths, key_lengths))
    g = torch.Generator().manual_seed(4)
    q = torch.randn(84, 4, 8, generator=g).to(dtype)
    k, v = (torch.randn(83, 2, n, generator=g).to(dtype) for n in (8, 6))
    grad = torch.randn(84, 4, 6, generator=g).to(dtype)

    def apart(q, k, v):
        pieces = zip(q.split(lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
        outs = [attention(*(x.transpose(0, 1)[None] for x in three), **options) for three in pieces]
        return torch.cat([out[0].transpose(0, 1) for out in outs])

    def together(q, k, v):
        return attention(q, k, v, query_starts=starts.int(), key_starts=key_starts, **options)

    with use_backend(backend):
        found = []
        for run in (apart, together):
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            out = run(*leaves)
            found.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Gradients of gradients and graphs, beyond what the generic tests take.


@pytest.mark.parametrize(
    "options",
    [
        {"causal": "lower_right", "window": 3},
        {"softcap": 1.5, "mask": mask_of((5, 7))},
        {"dropout_p": 0.4, "seed": 2},
    ],
    ids=str,
)
def test_gradients_of_gradients(options):
    q, k, v = make((2, 2, 1, 5, 7, 4, 3), torch.float64)
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def run(q, k, v):
        return attention(q, k, v, return_lse="dropout_p" not in options, **options)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_lengths_that_change_make_no_new_graphs():
    counter = CompileCounterWithBackend("eager")

    def run(x, starts):
        return attention(x, x, x, query_starts=starts, causal="lower_right")

    compiled = torch.compile(run, fullgraph=True, backend=counter, dynamic=True)
    for lengths in ((3, 4), (5, 1), (2, 9), (7, 7)):
        x, starts = torch.randn(sum(lengths), 2, 8), torch.tensor([0, *lengths]).cumsum(0)
        assert torch.equal(compiled(x, starts), run(x, starts))
    assert counter.frame_count == 1
    assert set(OPS) >= {"attention", "attention_backward"}


# The function of PyTorch's name.


def shaped(*shapes):
    g = torch.Generator().manual_seed(6)
    return [torch.randn(shape, generator=g) for shape in shapes]


@pytest.mark.parametrize(
    "shapes, options",
    [
        (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), {}),
        (((5, 8), (7, 8), (7, 6)), {"attn_mask": bias_of((5, 7))}),
        (((3, 5, 8), (3, 7, 8), (3, 7, 6)), {"attn_mask": bias_of((3, 5, 7))}),
        (((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 8)), {"is_causal": True}),
        (((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 8)), {"attn_mask": bias_of((2, 1, 3, 5, 7))}),
        (((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)), {"enable_gqa": True}),
        (((1, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), {"attn_mask": mask_of((5, 7)), "scale": 0.2}),
        (((2, 3, 5, 8), (2, 1, 7, 8), (2, 1, 7, 6)), {}),
    ],
    ids=str,
)
def test_scaled_dot_product_attention_is_that_of_pytorch(shapes, options):
    q, k, v = shaped(*shapes)
    came = gradients(lambda *x: scaled_dot_product_attention(*x, **options), (q, k, v))
    wanted = gradients(lambda *x: F.scaled_dot_product_attention(*x, **options), (q, k, v))
    torch.testing.assert_close(came, wanted, rtol=1e-5, atol=2e-6)


def test_scaled_dot_product_attention_says_what_is_wrong():
    x = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match="attn_mask came with is_causal=True, wanted one of the two"):
        scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(3, 3), is_causal=True)
    with pytest.raises(ValueError, match=r"key has shape \(3,\), wanted \(..., heads, positions, size\)"):
        scaled_dot_product_attention(x, torch.ones(3), x)

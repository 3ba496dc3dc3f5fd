"""The Triton kernels of attention: against the specification, and compiled ahead of time for three GPUs."""

import inspect

import pytest
import torch

from fastgen import use_backend
from fastgen.ops import attention
from fastgen.tolerances import REFERENCE

from .triton_compiler import compiling, interpreted, passed_ahead_of_time

pytest.importorskip("triton")

WAYS = {
    "plain": {},
    "causal": {"causal": "upper_left"},
    "window at the end": {"causal": "lower_right", "window": 7},
    "window": {"window": 3},
    "cap and bias": {"bias": (21, 25), "softcap": 1.5},
    "mask and bias": {"mask": (2, 1, 21, 25), "bias": (25,), "causal": "upper_left"},
    "dropout": {"dropout_p": 0.3, "seed": 5},
}
LOST = REFERENCE["attention in Triton"]


def options(way, g):
    made = dict(WAYS[way])
    if "bias" in made:
        made["bias"] = torch.randn(made["bias"], generator=g)
    if "mask" in made:
        made["mask"] = torch.rand(made["mask"], generator=g) > 0.5
    return made


def everything(backend, q, k, v, grads, **given):
    """The result, the log-sum-exp, and all gradients."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    if "bias" in given:
        given["bias"] = given["bias"].clone().requires_grad_()
    with use_backend(backend):
        found = attention(*leaves, return_lse=True, **given)
        wanted = leaves + ([given["bias"]] if "bias" in given else [])
        return [*found, *torch.autograd.grad(found, wanted, grads)]


def close(a, b, lost):
    same = torch.where(torch.isfinite(b), 0, b)
    assert torch.equal(torch.where(torch.isfinite(a), 0, a).nan_to_num(7), same.nan_to_num(7))
    a, b = a.detach().double().nan_to_num(0, 0, 0), b.detach().double().nan_to_num(0, 0, 0)
    assert (a - b).abs().max() <= lost * (1 + b.abs().max())


@interpreted
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", LOST)
def test_result_and_gradients_are_those_of_the_specification(way, dtype):
    g = torch.Generator().manual_seed(7)
    q = torch.randn(2, 21, 4, 20, generator=g).transpose(1, 2).to(dtype)
    k, v = (torch.randn(2, 2, 25, n, generator=g).to(dtype) for n in (20, 12))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grads = [torch.randn(2, 4, 21, 12, generator=g).to(dtype), torch.randn(2, 4, 21, generator=g).to(wide)]
    given = options(way, g)
    for a, b in zip(
        everything("triton", q, k, v, grads, **given),
        everything("reference", q, k, v, grads, **given),
        strict=True,
    ):
        close(a, b, LOST[dtype])


@interpreted
def test_gradients_of_wide_heads_whose_tiles_are_smaller():
    g = torch.Generator().manual_seed(8)
    q, k, v = (torch.randn(1, heads, n, 70, generator=g) for heads, n in ((2, 19), (1, 21), (1, 21)))
    grads = [torch.randn(1, 2, 19, 70, generator=g), torch.randn(1, 2, 19, generator=g)]
    found = [everything(name, q, k, v, grads, causal="lower_right") for name in ("triton", "reference")]
    for a, b in zip(*found, strict=True):
        close(a, b, LOST[torch.float32])


@interpreted
def test_packed_sequences_and_tiles_that_are_not_full():
    g = torch.Generator().manual_seed(8)
    starts, ends = torch.tensor([0, 3, 3, 73]), torch.tensor([0, 70, 71, 75])
    q = torch.randn(73, 2, 9, generator=g)
    k, v = (torch.randn(75, 1, n, generator=g) for n in (9, 17))
    grads = [torch.randn(73, 2, 17, generator=g), torch.randn(73, 2, generator=g)]
    given = {"query_starts": starts, "key_starts": ends, "causal": "lower_right"}
    for a, b in zip(
        everything("triton", q, k, v, grads, **given),
        everything("reference", q, k, v, grads, **given),
        strict=True,
    ):
        close(a, b, LOST[torch.float32])


@interpreted
def test_what_is_masked_never_enters_and_what_is_seen_does():
    g = torch.Generator().manual_seed(9)
    q, k, v = (torch.randn(1, 1, 40, 8, generator=g) for _ in range(3))
    grads = [torch.randn(1, 1, 40, 8, generator=g), torch.randn(1, 1, 40, generator=g)]
    mask = torch.ones(40, 40, dtype=torch.bool).tril()
    mask[:, 5] = False
    mask[3] = False
    wanted = everything("triton", q, k, v, grads, mask=mask)
    k[..., 5, :], v[..., 5, :] = torch.nan, torch.nan
    found = everything("triton", q, k, v, grads, mask=mask)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(x.isfinite().all() for x in found[2:])
    v[..., 20, 0], v[..., 21, 1] = torch.inf, -torch.inf
    out = everything("triton", q, k, v, grads, mask=mask)[0]
    assert torch.equal(out[..., :20, :], wanted[0][..., :20, :])
    assert (out[..., 20:, 0] == torch.inf).all() and (out[..., 21:, 1] == -torch.inf).all()


@interpreted
def test_a_row_has_the_same_bits_alone_and_in_a_batch():
    g = torch.Generator().manual_seed(10)
    q, k, v = (torch.randn(3, 2, 37, 8, generator=g) for _ in range(3))
    with use_backend("triton"):
        whole = attention(q, k, v, causal="upper_left")
        assert torch.equal(attention(q[1:2], k[1:2], v[1:2], causal="upper_left"), whole[1:2])


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == 9


TENSORS = ("q", "k", "v", "out", "grad_out")
WIDE = ("bias", "lse", "grad_lse", "grad_q", "grad_bias", "grad_k", "grad_v")


def signature(kernel, dtype, constants):
    """Types by the names of the arguments: strides and sizes are integers."""
    double = dtype == "fp64"
    types = dict.fromkeys(TENSORS, f"*{dtype}") | dict.fromkeys(WIDE, "*fp64" if double else "*fp32")
    types |= {"mask": "*u8", **dict.fromkeys(("query_starts", "key_starts", "sample_ids"), "*i64")}
    types |= {"scale": "fp32", "softcap": "fp32", "whole": "fp32", "seed": "i64", "threshold": "i64"}
    names = inspect.signature(kernel.fn).parameters
    return {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", ["attention_kernel", "queries_kernel", "keys_kernel"])
def test_triton_compiles_ahead_of_time(capability, name):
    import triton  # noqa: PLC0415
    from fastgen.kernels import attention as forward  # noqa: PLC0415
    from fastgen.kernels import attention_backward as backward  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415

    kernel = getattr(forward if name == "attention_kernel" else backward, name)
    for dtype, tile, switches in (
        ("fp32", (64, 32), {"CAUSAL": 1}),
        ("bf16", (64, 64), {"CAUSAL": 2, "WINDOW": True, "SOFTCAP": True, "PACKED": True, "KEEP": True}),
        ("fp64", (16, 16), {"BIAS": True, "MASK": True}),
    ):
        if dtype == "fp64" and capability > 80:  # no tensor cores are asked for: the same code on all
            continue
        side = 64 if name == "attention_kernel" else 32
        constants = dict.fromkeys(("WINDOW", "SOFTCAP", "BIAS", "MASK", "PACKED", "KEEP", "WIDEN"), False)
        constants |= {"CAUSAL": 0, "SIZE": 64, "VALUES": 64, "M": min(tile[0], side), "N": min(tile[1], side)}
        constants |= switches
        source = triton.compiler.ASTSource(kernel, signature(kernel, dtype, constants), constants)
        built = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"enable_fp_fusion": False, "num_warps": forward.WARPS},
        )
        assert built.asm["cubin"] and (dtype == "fp64" or "mma" in built.asm["ptx"])
        assert built.metadata.shared <= 96 * 1024

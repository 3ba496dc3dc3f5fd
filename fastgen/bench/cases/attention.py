"""Attention over whole sequences: prompts, training steps, masks, biases and packed sequences.

`flops` counts the products of the keys that are seen: two forward, five more backward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs_compiler
from fastgen.bench.matching import close
from fastgen.bench.peers import torch_attention
from fastgen.nn import MultiheadAttention
from fastgen.tolerances import MATCH


def _inputs(
    shape: tuple[int, int, int, int, int, int],
    lengths: tuple[int, ...],
    addend: str,
    backward: bool,
    dtype: torch.dtype,
    options: dict[str, Any],
    device: str,
) -> Inputs:
    """Shape is batch, query heads, key heads, positions, and the sizes of keys and values."""
    batch, heads, key_heads, length, size, value_size = shape
    generator = torch.Generator().manual_seed(16)

    def make(heads: int, size: int) -> Tensor:
        rows = (sum(lengths),) if lengths else (batch, length)
        x = torch.randn(*rows, heads, size, generator=generator).to(dtype)
        x = x if lengths else x.transpose(1, 2)  # as the linear layers before leave it
        return x.to(device)

    made: Inputs = {"q": make(heads, size), "k": make(key_heads, size), "v": make(key_heads, value_size)}
    if lengths:
        starts = torch.tensor([0, *lengths]).cumsum(0)
        made |= {"query_starts": starts.to(device), "key_starts": starts.to(device)}
    if addend == "bias":
        bias = torch.randn(1, heads, length, length, generator=generator)
        made["bias"] = bias.to(device)
    if addend == "mask":  # padding before the prompts of a batch, and causal
        first = torch.arange(batch)[:, None, None, None] * length // (2 * batch)
        place = torch.arange(length)
        made["mask"] = ((place >= first) & (place <= place[:, None])).to(device)
    if backward:
        made["grad"] = make(heads, value_size)
    return made | options


def _attend(inputs: Inputs) -> Tensor:
    out: Tensor = fastgen.ops.attention(**inputs)
    return out


def _fastgen(inputs: Inputs) -> Call:
    return torch_attention.with_gradients(_attend, inputs)


def _gradients(inputs: Inputs) -> Call:
    """Return the call of the backward pass alone, as autograd makes it."""
    q, k, v, grad = (inputs[name] for name in ("q", "k", "v", "grad"))
    bias, causal = inputs.get("bias"), inputs.get("causal") or "none"
    given = (q, k, v, bias, None, None, None, causal, 0, 0.0, q.shape[-1] ** -0.5, 0.0, 0, None)

    def run() -> tuple[Tensor, ...]:
        out, lse = torch.ops.fastgen.attention(*given)
        found: tuple[Tensor, ...] = torch.ops.fastgen.attention_backward(
            grad, torch.zeros_like(lse), out, lse, *given
        )
        return found

    return run


def _on_reference(build: Callable[[Inputs], Call], inputs: Inputs) -> Call:
    run = build(inputs)

    def insisting() -> Any:
        with fastgen.use_backend("reference"):
            return run()

    return insisting


def _peers(ours: Callable[[Inputs], Call], dtype: torch.dtype, torch_too: bool) -> tuple[Peer, ...]:
    same = close(*MATCH["attention" + " bfloat16" * (dtype != torch.float32)])
    build = torch_attention.build
    theirs = (
        Peer("scaled_dot_product_attention", build, same),
        Peer("torch.compile", partial(build, compile=True), same, missing=needs_compiler),
    )
    return (Peer("reference", partial(_on_reference, ours), same), *(theirs if torch_too else ()))


def _case(
    shape: tuple[int, int, int, int, int, int],
    *,
    lengths: tuple[int, ...] = (),
    addend: str = "",
    backward: bool = False,
    alone: bool = False,
    dtype: torch.dtype = torch.float32,
    torch_too: bool = True,
    quick: bool = False,
    **options: Any,
) -> Case:
    batch, heads, key_heads, length, size, value_size = shape
    named = "x".join(map(str, (batch, heads, length, size)))
    seen: float = sum(n * n for n in lengths) if lengths else batch * length**2
    rows = sum(lengths) if lengths else batch * length
    if options.get("causal") or addend == "mask":
        seen /= 2
    if window := options.get("window"):
        seen = rows * window
    words = [named if not lengths else f"packed {len(lengths)} of {sum(lengths)} x {heads} x {size}"]
    words += [f"{key_heads} key heads"] * (key_heads != heads) + ["causal"] * bool(options.get("causal"))
    words += [f"window {window}"] * bool(window) + [addend] * bool(addend)
    words += ["bf16"] * (dtype == torch.bfloat16) + ["forward+backward"] * backward + ["gradients"] * alone
    ours = _gradients if alone else _fastgen
    return Case(
        op="attention",
        name=" ".join(words),
        inputs=partial(_inputs, shape, lengths, addend, backward or alone, dtype, options),
        fastgen=ours,
        peers=_peers(ours, dtype, torch_too and not alone),
        work=Work(
            items=rows * heads,
            item="queries",
            bytes=dtype.itemsize * rows * (heads + key_heads) * (size + value_size) * (1 + 2 * backward),
            flops=seen * heads * (size + value_size) * (7 if backward else 2),
        ),
        quick=quick,
        registered="attention_backward" if alone else "",
    )


def _layer_inputs(batch: int, length: int, width: int, heads: int, device: str) -> Inputs:
    torch.manual_seed(17)
    state = torch.nn.MultiheadAttention(width, heads).state_dict()
    padding = torch.arange(length) >= torch.arange(batch, 2 * batch)[:, None] * length // (2 * batch)
    made = {"x": torch.randn(batch, length, width).to(device), "padding": padding.to(device)}
    return made | {"state": state, "heads": heads}


def _layer_case(batch: int, length: int, width: int, heads: int) -> Case:
    """A whole layer of a batch whose sequences are padded, as an encoder calls it."""
    ours = partial(torch_attention.layer, kind=MultiheadAttention)
    same, rows = close(*MATCH["attention"]), batch * length
    return Case(
        op="attention",
        name=f"MultiheadAttention {batch}x{length}x{width}, {heads} heads, padded",
        inputs=partial(_layer_inputs, batch, length, width, heads),
        fastgen=ours,
        peers=(
            Peer("reference", partial(_on_reference, ours), same),
            Peer("eager, torch.nn.MultiheadAttention", torch_attention.layer, same),
        ),
        work=Work(
            items=rows,
            item="positions",
            bytes=4 * (2 * rows * width + 4 * width**2),
            flops=rows * width * (8 * width + 3 * length),
        ),
    )


CASES = (
    _case((1, 9, 9, 1024, 64, 64), causal="upper_left"),
    _case((1, 9, 3, 1024, 64, 64), causal="upper_left"),
    _case((1, 9, 9, 1024, 64, 64), causal="upper_left", dtype=torch.bfloat16),
    _case((1, 9, 9, 4096, 64, 64), causal="upper_left", window=512),
    _case((4, 12, 12, 512, 64, 64), addend="mask"),
    _case((1, 12, 12, 1024, 64, 64), addend="bias"),
    _case((16, 9, 9, 512, 64, 64), lengths=(17, 512, 90, 130, 301, 64, 5, 400), causal="lower_right"),
    _case((1, 9, 9, 1024, 64, 64), causal="upper_left", backward=True),
    _case((8, 8, 8, 256, 64, 64), causal="upper_left", backward=True),
    _case((2, 8, 8, 512, 64, 64), addend="bias", backward=True),
    _layer_case(8, 128, 512, 8),
    _case((2, 4, 2, 37, 20, 12), causal="upper_left", quick=True),
    _case((2, 2, 2, 19, 8, 8), addend="mask", quick=True),
    _case((2, 2, 2, 9, 8, 8), addend="bias", alone=True, quick=True),
    _case((0, 2, 1, 9, 8, 8), lengths=(3, 9, 0, 5), causal="lower_right", torch_too=False, quick=True),
    _case((1, 2, 1, 21, 8, 8), window=5, softcap=3.0, torch_too=False, quick=True),
)

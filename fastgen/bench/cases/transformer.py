"""Passes of a decoder-only transformer with layers of SmolLM2's sizes: steps of decoding, and prompts.

`reads` counts the weights once a pass, and `flops` two a weight and token; attention is left out of both.
"""

from functools import partial

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work
from fastgen.bench.matching import close
from fastgen.bench.peers import torch_transformer
from fastgen.bench.peers.torch_transformer import Sizes
from fastgen.ops.transformer import PAGE
from fastgen.tolerances import MATCH

BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.0, "q8_0": 8.5, "q4_1": 5.0, "q4_0": 4.5}


def _inputs(sizes: Sizes, format: str, sequences: int, past: int, new: int, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(31)
    length = past + new
    pages = -(-length // PAGE)
    cache = (sizes.layers, sequences * pages, sizes.kv_heads, PAGE, sizes.head_size)
    made: Inputs = {
        "tokens": torch.randint(sizes.vocabulary, (sequences * new,), generator=generator),
        "query_starts": torch.arange(sequences + 1) * new,
        "lengths": torch.full((sequences,), length),
        "block_table": torch.randperm(sequences * pages, generator=generator).view(sequences, pages).int(),
        "keys": torch.randn(cache, generator=generator),
        "values": torch.randn(cache, generator=generator),
        "wanted": torch.arange(1, sequences + 1) * new - 1,
    }
    made = {name: value.to(device) for name, value in made.items()}
    return made | {"weights": torch_transformer.random_weights(sizes, format, device=device)}


def _fastgen(inputs: Inputs) -> Call:
    return lambda: fastgen.ops.transformer(**inputs)


def _reference(inputs: Inputs) -> Call:
    def run() -> Tensor:
        with fastgen.use_backend("reference"):
            return fastgen.ops.transformer(**inputs)

    return run


def _case(sizes: Sizes, format: str, sequences: int, past: int, new: int, *, quick: bool = False) -> Case:
    llama = sizes.layout == "llama"
    kv_width = sizes.kv_heads * sizes.head_size
    a_layer = sizes.hidden * (2 * sizes.hidden + 2 * kv_width + (3 if llama else 2) * sizes.between)
    of_layers, of_head = sizes.layers * a_layer, sizes.hidden * sizes.vocabulary
    same = close(*MATCH["transformer" + " rounded inputs" * (format not in ("float32", "bfloat16"))])
    tokens = sequences * new
    return Case(
        op="transformer",
        name=f"{sizes.layout} {sizes.layers} x {sizes.hidden} {format}, {sequences} x {new} after {past}",
        inputs=partial(_inputs, sizes, format, sequences, past, new),
        fastgen=_fastgen,
        peers=(Peer("reference", _reference, same), Peer("eager", torch_transformer.build, same)),
        work=Work(
            items=tokens,
            item="tokens",
            reads=(of_layers + of_head) * BITS[format] / 8,
            flops=2 * (of_layers * tokens + of_head * sequences),
        ),
        quick=quick,
    )


_SMOL = Sizes(8, 576, 9, 3, 1536, 49152, 2048)
_GPT2 = Sizes(4, 768, 12, 12, 3072, 50257, 1024, "gpt2")
CASES = (
    _case(_SMOL, "float32", 1, 256, 1),
    _case(_SMOL, "bfloat16", 1, 256, 1),
    _case(_SMOL, "q4_1", 1, 256, 1),
    _case(_SMOL, "q4_1", 32, 256, 1),
    _case(_SMOL, "float32", 32, 256, 1),
    _case(_SMOL, "float32", 1, 0, 512),
    _case(_SMOL, "q4_1", 1, 0, 512),
    _case(_GPT2, "float32", 1, 256, 1),
    _case(_GPT2, "float32", 16, 256, 1),
    _case(Sizes(2, 64, 4, 2, 96, 50, 128), "float32", 2, 66, 3, quick=True),
    _case(Sizes(2, 64, 4, 2, 96, 50, 128), "q4_1", 1, 0, 5, quick=True),
    _case(Sizes(1, 36, 3, 3, 40, 33, 96, "gpt2"), "bfloat16", 3, 30, 1, quick=True),
)

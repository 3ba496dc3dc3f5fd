"""New positions against a cache of keys and values: decoding, and a prompt.

`reads` counts keys and values once, whatever the number of query heads, and `flops` the products that
causality leaves.
"""

from functools import partial
from typing import Any

import torch

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work
from fastgen.bench.matching import close
from fastgen.bench.peers import torch_decoding
from fastgen.tolerances import MATCH

HEADS = {"9/3 heads": (9, 3), "12 heads": (12, 12), "32/8 heads": (32, 8), "4/2 heads": (4, 2)}


def _inputs(
    batch: int, new: int, length: int, heads: tuple[int, int], size: int, dtype: torch.dtype, device: str
) -> Inputs:
    generator = torch.Generator().manual_seed(6)
    shapes = {"q": (batch, heads[0], new, size)} | dict.fromkeys(
        ("keys", "values"), (batch, heads[1], length, size)
    )
    made = {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    made["lengths"] = torch.full((batch,), length)
    return {name: x.to(device) for name, x in made.items()}


def _paged(inputs: Inputs) -> Inputs:
    """The same cache in pages of 64, in the order of the table (odd pages first), queries packed."""
    keys, values, lengths = inputs["keys"], inputs["values"], inputs["lengths"]
    batch, length = keys.shape[0], keys.shape[2]
    pages = -(-length // 64)
    order = torch.arange(batch * pages, device=keys.device)
    order = torch.cat([order[1::2], order[::2]])

    def paged(cache: torch.Tensor) -> torch.Tensor:
        full = torch.nn.functional.pad(cache, (0, 0, 0, pages * 64 - length), value=float("nan"))
        whole = full.unflatten(2, (pages, 64)).transpose(1, 2).flatten(0, 1)
        return whole[order].contiguous()

    new = inputs["q"].shape[2]
    return {
        "q": inputs["q"].transpose(1, 2).flatten(0, 1).contiguous(),
        "keys": paged(keys),
        "values": paged(values),
        "lengths": lengths,
        "block_table": torch.argsort(order).int().view(batch, pages),
        "query_starts": torch.arange(batch + 1, device=keys.device) * new,
    }


def _arranged(paged: bool, *sizes: Any) -> Inputs:
    made = _inputs(*sizes)
    return _paged(made) if paged else made


def _fastgen(options: dict[str, Any], inputs: Inputs) -> Call:
    return lambda: fastgen.ops.decode_attention(**inputs, **options)


def _reference(options: dict[str, Any], inputs: Inputs) -> Call:
    def run() -> Any:
        with fastgen.use_backend("reference"):
            return fastgen.ops.decode_attention(**inputs, **options)

    return run


def _case(
    batch: int,
    new: int,
    length: int,
    heads: str,
    *,
    size: int = 64,
    dtype: torch.dtype = torch.float32,
    paged: bool = False,
    quick: bool = False,
    **options: Any,
) -> Case:
    exact = close(*MATCH["decode_attention" + " bfloat16" * (dtype != torch.float32)])
    peers = [Peer("reference", partial(_reference, options), exact)]
    if not paged and not options:
        peers.append(Peer("scaled_dot_product_attention", torch_decoding.build, exact))
    query_heads, key_heads = HEADS[heads]
    what = f"B {batch}, cache {length}" if new == 1 else f"B {batch}, {new} new of {length}"
    remarks = ["bf16"] * (dtype == torch.bfloat16) + ["paged"] * paged + sorted(options)
    pairs = new * (length - (new - 1) / 2)
    return Case(
        op="decode_attention",
        name=", ".join([what, heads, f"D {size}", *remarks]),
        inputs=partial(_arranged, paged, batch, new, length, HEADS[heads], size, dtype),
        fastgen=partial(_fastgen, options),
        peers=tuple(peers),
        work=Work(
            items=batch * new,
            item="positions",
            reads=2 * batch * key_heads * length * size * dtype.itemsize,
            flops=4 * batch * query_heads * pairs * size,
        ),
        quick=quick,
    )


CASES = (
    _case(1, 1, 4096, "9/3 heads"),
    _case(8, 1, 4096, "9/3 heads"),
    _case(8, 1, 4096, "9/3 heads", paged=True),
    _case(1, 1, 4096, "9/3 heads", dtype=torch.bfloat16),
    _case(8, 1, 4096, "9/3 heads", dtype=torch.bfloat16),
    _case(1, 1, 1024, "12 heads"),
    _case(8, 1, 1024, "12 heads"),
    _case(1, 1, 4096, "32/8 heads", size=128),
    _case(1, 512, 512, "9/3 heads"),
    _case(1, 512, 4096, "9/3 heads"),
    _case(2, 3, 70, "4/2 heads", size=10, quick=True),
    _case(2, 1, 130, "4/2 heads", size=16, paged=True, quick=True, window=40, softcap=5.0),
)

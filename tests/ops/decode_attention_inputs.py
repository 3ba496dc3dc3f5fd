"""What the tests of decode_attention share: inputs, results in float64, native on an instruction set."""

import torch

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.ops import decode_attention
from fastgen.ops._registry import OPS

ISAS = native.usable_isas()
HERE = [name for name in OPS["decode_attention"].implementations if usable("decode_attention", name, "cpu")]
NAN = float("nan")
OPTIONS = [
    {},
    {"window": 50},
    {"softcap": 1.5},
    {"scale": 0.3, "window": 1},
    {"window": 1000, "softcap": 30.0},
]


def make(batch, heads, key_heads, new, length, size, dtype=torch.float32, seed=0):
    """q, keys, values."""
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, new, size), (batch, key_heads, length, size), (batch, key_heads, length, size)
    q, keys, values = (torch.randn(shape, generator=g) for shape in shapes)
    return q, keys.to(dtype), values.to(dtype)


def exact(q, keys, values, lengths, *, scale=None, window=None, softcap=None):
    """out and lse in float64, one position at a time, from the definition alone."""
    batch, heads, new, size = q.shape
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:3], -torch.inf).double()
    for b in range(batch):
        for h in range(heads):
            for i in range(new):
                end = max(0, int(lengths[b]) - new + i + 1)
                seen = slice(0 if window is None else max(0, end - window), end)
                if end == 0:
                    continue
                head = h // (heads // keys.shape[1])
                score = keys[b, head, seen].double() @ q[b, h, i].double() * (scale or size**-0.5)
                score = score if softcap is None else softcap * torch.tanh(score / softcap)
                lse[b, h, i] = torch.logsumexp(score, 0)
                out[b, h, i] = torch.softmax(score, 0) @ values[b, head, seen].double()
    return out, lse


def on(isa, *arguments, **options):
    with native.instruction_set(isa), use_backend("native"):
        return decode_attention(*arguments, return_lse=True, **options)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

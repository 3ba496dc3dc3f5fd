"""What the tests of attention share: inputs, PyTorch's own attention, and results with their gradients."""

import torch
from torch.nn import functional as F

from fastgen import native
from fastgen.backends import usable
from fastgen.ops import attention

ISAS = native.usable_isas()
HERE = ["reference"] + ["native"] * usable("attention", "native", "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SHAPES = [  # B, Hq, Hkv, L, S, D, Dv
    (1, 1, 1, 1, 1, 1, 1),
    (2, 4, 2, 37, 45, 20, 12),
    (2, 3, 3, 130, 70, 64, 64),
    (1, 6, 1, 5, 200, 40, 33),
    (1, 2, 1, 7, 300, 72, 80),
    (1, 1, 1, 9, 33, 512, 96),
    (3, 2, 2, 64, 64, 8, 5),
]


def make(shape, dtype=torch.float32, seed=0):
    """q, k and v, q as a linear layer leaves it."""
    batch, heads, key_heads, queries, keys, size, value_size = shape
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, queries, heads, size, generator=g).transpose(1, 2).to(dtype)
    k = torch.randn(batch, key_heads, keys, size, generator=g).to(dtype)
    return q, k, torch.randn(batch, key_heads, keys, value_size, generator=g).to(dtype)


def bias_of(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask_of(shape, seed=2):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.4


def sdpa(q, k, v, **given):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **given)


def gradients(run, leaves):
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    out = run(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def grads_of_everything(q, k, v, **options):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out, lse = attention(*leaves, return_lse=True, **options)
    return out.detach(), lse.detach(), torch.autograd.grad(out.sum(), leaves)

"""What the tests of sample_logits share."""

import torch

from fastgen import native
from fastgen.backends import usable
from fastgen.reference import sample_logits as reference

ISAS = native.usable_isas()
# Triton, whose interpreter is slow, is held to the bits of the reference in a file of its own.
HERE = [name for name in ("reference", "native") if usable("sample_logits", name, "cpu")]
INF = float("inf")


def make(rows, vocabulary, seed=0, scale=2.0):
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def equal(a, b):
    return torch.equal(a.token, b.token) and torch.equal(a.log_prob, b.log_prob)


def kept(logits, settings):
    column = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0} | settings
    columns = [torch.full((len(logits),), float(x), dtype=torch.float64) for x in column.values()]
    return reference.kept(logits, reference.scaled(logits, columns[0]), *columns[1:])

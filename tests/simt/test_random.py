"""The CUDA draws, run on the CPU in several orders of threads, against the reference: the same bits."""

import numpy as np
import pytest
import torch

from fastgen.reference import random as reference

DTYPES = {"bits": torch.uint32, "uniform": torch.float32, "normal": torch.float32, "bernoulli": torch.bool}
ORDERS = ["fwd", "rev", "deep", "11"]
IDS = torch.tensor([0, 1, 7, 2**31, 2**40 + 3, 2**56 - 1, 5])
FENCE = 8


def draw(ops, kind, arguments, p=None):
    """Runs one op into memory that is poisoned and fenced: an element not written, or one outside, shows."""
    seed, ids, step, n, stream = arguments
    count = len(ids) * n
    memory = np.full((count + 2 * FENCE) * DTYPES[kind].itemsize, 0xA5, np.uint8)
    out = torch.from_numpy(memory).view(DTYPES[kind])[FENCE : FENCE + count].view(len(ids), n)
    leading = () if p is None else (p.expand(len(ids), n),)
    getattr(ops, kind)(out, *leading, seed, ids, step, stream)
    edge = FENCE * DTYPES[kind].itemsize
    assert (memory[:edge] == 0xA5).all() and (memory[-edge:] == 0xA5).all()
    return out


def expected(kind, arguments, p=None):
    leading = () if p is None else (p,)
    return getattr(reference, kind)(*leading, *arguments)


def same_bits(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a.numpy().view(np.uint8), b.contiguous().numpy().view(np.uint8))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["bits", "uniform", "normal"])
@pytest.mark.parametrize("n", [1, 3, 4, 1026])
def test_same_bits_as_the_reference(simt_ops, monkeypatch, kind, n, order):
    monkeypatch.setenv("SIMT_ORDER", order)
    arguments = (0x123456789ABCDEF0, IDS, 2**32 - 2, n, 200)
    same_bits(draw(simt_ops, kind, arguments), expected(kind, arguments))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (7, 1), (7, 37)])
def test_bernoulli_takes_any_strides(simt_ops, monkeypatch, shape, order):
    monkeypatch.setenv("SIMT_ORDER", order)
    p = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    arguments = (-5, IDS, 3, 37, 9)
    same_bits(draw(simt_ops, "bernoulli", arguments, p), expected("bernoulli", arguments, p))


def test_bernoulli_is_exact_at_the_threshold(simt_ops):
    ids, n = torch.arange(3), 8
    word = reference.words(1, ids, 0, n, 0).double()
    for p, outcome in [(word / 2**32, False), ((word + 1) / 2**32, True)]:
        assert (draw(simt_ops, "bernoulli", (1, ids, 0, n, 0), p) == outcome).all()
    for outcome in (False, True):
        p = torch.full((1, 1), float(outcome), dtype=torch.float64)
        assert (draw(simt_ops, "bernoulli", (1, ids, 0, 4096, 0), p) == outcome).all()


@pytest.mark.parametrize("kind", ["bits", "uniform", "normal"])
def test_a_million_draws(simt_ops, kind):
    arguments = (42, torch.arange(40), 5, 25_001, 1)
    same_bits(draw(simt_ops, kind, arguments), expected(kind, arguments))


def test_more_rows_than_a_grid_is_high(simt_ops):
    ids = torch.arange(65535 * 256 // 64 + 5)  # 64 threads across and 4 rows a block: the rows loop
    out = draw(simt_ops, "bits", (3, ids, 0, 256, 0))
    rows = torch.tensor([0, 65535 * 4 - 1, 65535 * 4, len(ids) - 1])
    same_bits(out[rows], expected("bits", (3, ids[rows], 0, 256, 0)))


@pytest.mark.parametrize("rows,n", [(0, 5), (5, 0)])
def test_nothing_to_draw(simt_ops, rows, n):
    assert draw(simt_ops, "normal", (1, torch.arange(rows), 0, n, 0)).shape == (rows, n)


def test_wrong_memory_is_refused(simt_ops):
    ids = torch.arange(4)
    with pytest.raises(RuntimeError, match="bad output"):
        simt_ops.uniform(torch.empty(4, 5, dtype=torch.float64), 1, ids, 0, 0)
    with pytest.raises(RuntimeError, match="bad sample_ids"):
        simt_ops.uniform(torch.empty(5, 5), 1, ids, 0, 0)
    with pytest.raises(RuntimeError, match="bad p"):
        simt_ops.bernoulli(torch.empty(4, 5, dtype=torch.bool), torch.rand(4, 5), 1, ids, 0, 0)

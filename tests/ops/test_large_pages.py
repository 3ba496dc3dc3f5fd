"""Memory of packed weights: same numbers, no byte of another's, given back with the last of them."""

import gc
import mmap
import sys
from pathlib import Path

import pytest
import torch

from fastgen.ops import PackedWeight, _large_pages
from fastgen.ops._large_pages import Pieces, in_large_pages

needs_large_pages = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages to ask for"
)


def numbers(count, seed=0, dtype=torch.float32):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint8])
@pytest.mark.parametrize("count", [0, 1, 70_001, 9_000_000])
def test_numbers_are_the_same_and_own_their_storage(count, dtype):
    given = numbers(count, dtype=dtype).view(-1, 1)
    found = in_large_pages(given)
    assert found.shape == given.shape and torch.equal(found, given)
    assert found.untyped_storage().nbytes() == given.numel() * given.element_size()


@needs_large_pages
def test_tensors_of_one_piece_do_not_touch():
    sizes = [70_001, 33_333, 65_537, 100_000]
    found = [in_large_pages(numbers(size, seed)) for seed, size in enumerate(sizes)]
    for i, tensor in enumerate(found):
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(i)
    assert all(bool((tensor == i).all()) for i, tensor in enumerate(found))


@needs_large_pages
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux about its memory")
def test_memory_of_a_weight_is_marked_for_large_pages():
    weight = PackedWeight.pack(numbers(512 * 512).view(512, 512), "float32")
    inside, flags = False, []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            begin, end = (int(word, 16) for word in first.split("-"))
            inside = begin <= weight.data.data_ptr() < end
        elif inside and first == "VmFlags:":
            flags = rest
    assert "hg" in flags


@needs_large_pages
def test_a_piece_is_free_once_all_its_tensors_are(monkeypatch):
    pieces = Pieces()
    monkeypatch.setattr(_large_pages, "_pieces", pieces)
    first, second = in_large_pages(numbers(70_000)), in_large_pages(numbers(80_000))
    piece = pieces._latest
    del first
    gc.collect()
    assert piece() is not None and torch.equal(second, numbers(80_000))
    del second
    gc.collect()
    assert piece() is None
    assert torch.equal(in_large_pages(numbers(70_000)), numbers(70_000))

"""Attention at its limits: masks of more than 2^31 elements, and a machine without the fast kernel."""

import importlib
import warnings

import numpy as np
import pytest
import torch

from fastgen import native, use_backend
from fastgen.ops import attention

backends = importlib.import_module("fastgen.backends")  # the package has a function of this name
LONG = 46_400  # whose square is above 2^31
WINDOW = 8

needs_native = pytest.mark.skipif(bool(native.missing("attention")), reason="the native kernel is not here")


def long_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 1, LONG, 4, generator=generator).to(dtype) for _ in range(3)]


def last_rows(q, k, v, **options):
    """The last 16 rows, by the reference, from what they see alone."""
    tail = slice(LONG - 16 - WINDOW, LONG)
    with use_backend("reference"):
        out = attention(*(x[:, :, tail] for x in (q, k, v)), causal="upper_left", window=WINDOW, **options)
    return out[:, :, -16:]


@needs_native
def test_a_mask_of_more_than_two_to_the_31_elements_is_read_where_it_says():
    """Memory that nobody writes to takes none: all of the mask but its last corner is one page of zeros."""
    q, k, v = long_inputs()
    mask = torch.from_numpy(np.zeros((1, 1, LONG, LONG), bool))
    corner = torch.rand(24, 24, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0, 0, -24:, -24:] = corner
    with use_backend("native"):
        out = attention(q, k, v, causal="upper_left", window=WINDOW, mask=mask)
    assert mask.numel() > 2**31
    assert not out[:, :, : LONG - 24].any()  # rows that see nothing
    torch.testing.assert_close(out[:, :, -16:], last_rows(q, k, v, mask=corner), rtol=1e-5, atol=1e-5)
    assert out[:, :, -16:].any()


@needs_native
@pytest.mark.parametrize("shape", [(LONG, 1), (1, LONG), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ["bias", "mask"])
def test_masks_and_biases_that_are_expanded_beyond_two_to_the_31_elements(name, shape):
    q, k, v = long_inputs()
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    numbers[-1, -1] = 1.0
    given = numbers if name == "bias" else numbers > -0.5
    expanded = given.expand(1, 1, LONG, LONG)
    assert expanded.numel() > 2**31
    small = given.expand(LONG, LONG)[-16 - WINDOW :, -16 - WINDOW :]
    with use_backend("native"):
        out = attention(q, k, v, causal="upper_left", window=WINDOW, **{name: expanded})
    torch.testing.assert_close(out[:, :, -16:], last_rows(q, k, v, **{name: small}), rtol=1e-5, atol=1e-5)


def test_without_its_fast_kernel_it_says_so_once_and_is_right(monkeypatch):
    q, k, v = (torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    wanted = attention(q, k, v, causal="upper_left")
    monkeypatch.setattr(backends.native, "missing", lambda op: f"{op} was not built")
    monkeypatch.setattr(backends, "_warned", set())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = [attention(q, k, v, causal="upper_left") for _ in range(3)]
    mine = [str(w.message) for w in said if issubclass(w.category, RuntimeWarning)]
    assert mine == [
        "fastgen runs attention on cpu without its native implementation: attention was not built"
    ]
    for out in found:
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)

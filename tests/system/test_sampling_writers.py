"""What is written for each kind of sample: arrays, and pictures whose pixels are read back."""

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen import sampling


class Given:
    """A model whose samples are given."""

    def __init__(self, samples):
        self.samples = samples

    def sample(self, sample_ids, *, seed):
        return self.samples[sample_ids]


def pictures(tmp_path, samples):
    """The pixels of the pictures that are written for `samples`."""
    fastgen.sample(Given(samples), len(samples), out=tmp_path, format="png", shard_size=2, progress=False)
    paths = sorted(tmp_path.glob("shard-*/*.png"))
    assert [path.stem for path in paths] == [f"{i:012d}" for i in range(len(samples))]
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64, torch.complex64],
)
def test_arrays_keep_dtype_and_values(tmp_path, dtype):
    samples = (torch.arange(30).reshape(5, 2, 3) % 7).to(dtype)
    fastgen.sample(Given(samples), 5, out=tmp_path, shard_size=2, progress=False)
    loaded = sampling.load(tmp_path)
    assert loaded.dtype == dtype and torch.equal(loaded, samples)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_floats_that_numpy_lacks_are_stored_as_float32(tmp_path, dtype):
    samples = torch.linspace(-2, 2, 15).reshape(5, 3).to(dtype)
    fastgen.sample(Given(samples.float()), 5, out=tmp_path / "float32", progress=False)
    fastgen.sample(Given(samples), 5, out=tmp_path / "narrow", progress=False)
    assert torch.equal(sampling.load(tmp_path / "narrow"), sampling.load(tmp_path / "float32"))


def test_scalar_samples_are_arrays_too(tmp_path):
    fastgen.sample(Given(torch.arange(5)), 5, out=tmp_path, progress=False)
    assert torch.equal(sampling.load(tmp_path), torch.arange(5))


def test_uint8_is_grey_as_it_is(tmp_path):
    samples = (torch.arange(60) * 4).to(torch.uint8).reshape(3, 4, 5)
    assert np.array_equal(pictures(tmp_path, samples), samples.numpy())


def test_one_channel_is_grey_and_three_are_colour(tmp_path):
    samples = (torch.arange(180) % 256).to(torch.uint8).reshape(3, 3, 4, 5)
    assert np.array_equal(pictures(tmp_path / "colour", samples), samples.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(pictures(tmp_path / "grey", samples[:, :1]), samples[:, 0].numpy())


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([[True, False]]),
        torch.tensor([[1, -1]], dtype=torch.int8),
        torch.tensor([[1.0, -1.0]]),
        torch.tensor([[1, 0]], dtype=torch.int32),
        torch.tensor([[1.0, 0.0]]),
    ],
)
def test_two_valued_samples_are_black_and_white(tmp_path, values):
    assert pictures(tmp_path, values[None]).tolist() == [[[255, 0]]]


def test_all_spins_up_is_white_and_all_down_black(tmp_path):
    spins = torch.tensor([1, -1], dtype=torch.int8)[:, None, None].expand(2, 2, 2)
    assert pictures(tmp_path, spins).tolist() == [[[255, 255]] * 2, [[0, 0]] * 2]


def test_floats_become_the_nearest_grey(tmp_path):
    samples = torch.tensor([0.0, 0.1, 0.5, 0.999, 1.0]).reshape(1, 1, 5)
    assert pictures(tmp_path, samples).tolist() == [[[0, 26, 128, 255, 255]]]


@pytest.mark.parametrize(
    "sample, message",
    [
        (torch.zeros(784), r"sample 1 has shape \(784,\), png wants \(H, W\), \(1, H, W\) or \(3, H, W\)"),
        (torch.zeros(2, 4, 4), r"has shape \(2, 4, 4\), png wants"),
        (torch.zeros(0, 4), r"has shape \(0, 4\), png wants"),
        (torch.tensor([[0.0, 1.5]]), r"ranges from 0\.0 to 1\.5, png wants \[0, 1\], or -1 and \+1 only"),
        (torch.tensor([[-0.5, 1.0]]), r"ranges from -0\.5 to 1\.0, png wants"),
        (torch.tensor([[0.0, float("nan")]]), "ranges from nan to nan, png wants"),
        (torch.tensor([[0, 7]]), "ranges from 0 to 7, png wants 0 and 1, or -1 and"),
        (torch.tensor([[-1, 0]]), "ranges from -1 to 0, png wants 0 and 1"),
        (torch.tensor([[0j, 1j]]), "is torch.complex64, png wants real numbers"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, sample, message):
    good = torch.zeros_like(sample)
    with pytest.raises(ValueError, match=message):
        fastgen.sample(
            Given(torch.stack([good, sample])), 1, first=1, out=tmp_path, format="png", progress=False
        )

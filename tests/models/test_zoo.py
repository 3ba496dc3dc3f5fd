"""The models that come with fastgen: small, complete, and as good as the docs say."""

import re
from pathlib import Path

import pytest
import torch

from fastgen import models, zoo
from fastgen.training.flows import DATASETS, held_out

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/models.md").read_text()


def test_the_zoo_is_small():
    sizes = [sum(file.stat().st_size for file in zoo.path(name).iterdir()) for name in zoo.names()]
    assert len(sizes) >= 6 and max(sizes) < 1_000_000 and sum(sizes) < 3_000_000


@pytest.mark.parametrize("name", zoo.names())
def test_its_models_sample(name):
    model = models.load(f"zoo:{name}")
    context = 3 if model.class_count else None
    x = model.sample(torch.arange(4), seed=0, context=context)
    assert x.shape == (4, *model.shape)
    if model.dequantization is None:
        assert bool(torch.isfinite(x).all())
    else:
        assert x.dtype == torch.uint8 and 10 < x.float().mean() < 150
    again = model.sample(torch.tensor([2]), seed=0, context=context)
    assert torch.equal(again[0], x[2])


@pytest.mark.parametrize("name", zoo.names())
def test_the_page_says_how_well_they_know_held_out_data(name):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} "))
    _, dataset, _, _, nats, bits = (cell.strip() for cell in row.strip("|").split("|"))
    said = float(re.match(r"-?[\d.]+", nats.replace("−", "-")).group())
    found = held_out(models.load(f"zoo:{name}"), DATASETS[dataset]())
    assert found.nats == pytest.approx(said, abs=0.02 + 1e-4 * abs(said))
    if bits:
        assert found.bits_per_dimension == pytest.approx(float(bits), abs=0.002)


def test_an_animal_that_is_not_there_is_explained():
    with pytest.raises(ValueError, match=r"the zoo has no 'unicorn', it has .*glow-digits"):
        models.load("zoo:unicorn")

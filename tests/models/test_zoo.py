"""The models that come with fastgen: small, complete, and as good as the docs say."""

import re
from pathlib import Path

import pytest
import torch

from fastgen import data, models, zoo
from fastgen.training.flows import DATASETS, held_out
from fastgen.training.texts import bits_per_character

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/models.md").read_text()
TEXT = "transformer-shakespeare"
FLOWS = [name for name in zoo.names() if name != TEXT]


def test_the_zoo_is_small():
    sizes = [sum(file.stat().st_size for file in zoo.path(name).iterdir()) for name in zoo.names()]
    assert len(sizes) >= 6 and max(sizes) < 1_000_000 and sum(sizes) < 3_000_000


@pytest.mark.parametrize("name", FLOWS)
def test_its_flows_sample(name):
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


def test_its_transformer_writes_words_that_it_has_read():
    found = models.load(f"zoo:{TEXT}").generate("ROMEO.\n", n=4, max_new_tokens=250, temperature=0.5, seed=2)
    read = set(re.findall(r"[a-z']+", " ".join(data.shakespeare().train.values()).lower()))
    words = re.findall(r"[a-z']+", " ".join(text.text for text in found).lower())
    assert len(words) > 100 and sum(word in read for word in words) > 0.8 * len(words)
    assert len({text.text for text in found}) == 4


@pytest.mark.slow
def test_the_page_says_how_well_its_transformer_knows_works_it_has_not_read():
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {TEXT} "))
    said = float(row.strip("|").split("|")[-1])
    found = bits_per_character(models.load(f"zoo:{TEXT}"), data.shakespeare().test.values())
    assert found == pytest.approx(said, abs=0.001)


@pytest.mark.parametrize("name", FLOWS)
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

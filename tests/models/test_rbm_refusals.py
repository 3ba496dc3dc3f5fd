"""fastgen.models.RBM: what it refuses, and that nothing is changed by then."""

import math

import numpy as np
import pytest
import torch

from fastgen.models import RBM

from .test_rbm import random_rbm


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(visible=0, hidden=3), "visible is 0, wanted at least 1"),
        (dict(visible=(), hidden=3), r"visible is \(\)"),
        (dict(visible=(3, 2.5), hidden=3), r"visible is 2\.5"),
        (dict(visible=5.5, hidden=3), r"visible is 5\.5, wanted an int of at least 1"),
        (dict(visible=3, hidden="4"), "hidden is '4', wanted an int"),
        (dict(visible=3, hidden=0), "hidden is 0"),
        (dict(visible=3, hidden=3, visible_kind="poisson"), "visible_kind 'poisson'"),
        (dict(visible=3, hidden=3, chains=-1), "chains is -1"),
        (dict(visible=3, hidden=3, gibbs_steps=0), "gibbs_steps is 0"),
    ],
)
def test_machines_that_cannot_be_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RBM(**arguments)


def test_integers_of_numpy_are_sizes():
    model = RBM(np.int64(5), np.int32(3), chains=np.int64(2))
    assert model.config == RBM(5, 3, chains=2).config and model.weight.shape == (5, 3)


def test_a_seed_from_torch_is_the_seed_of_the_weights():
    model = RBM(5, 3, seed=None)
    assert torch.equal(model.weight, RBM(5, 3, seed=model.config["seed"]).weight)


@pytest.mark.parametrize(
    "kind, data, message",
    [
        ("bernoulli", torch.full((2, 6), 255.0), r"data ranges from 255\.0 to 255\.0, wanted 0 to 1"),
        ("bernoulli", torch.full((2, 6), math.nan), "data ranges from nan to nan, wanted 0 to 1"),
        ("gaussian", torch.full((2, 6), math.inf), "data ranges from inf to inf, wanted finite numbers"),
        ("bernoulli", torch.zeros(0, 6), "data has no rows, wanted at least one"),
        ("gaussian", torch.zeros(0, 6), "data has no rows, wanted at least one"),
    ],
)
def test_data_that_cannot_be_leave_the_machine_as_it_was(kind, data, message):
    model = random_rbm(6, 5, kind, chains=2)
    before = model.fingerprint()
    with pytest.raises(ValueError, match=message):
        model.initialise(data)
    assert model.fingerprint() == before


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_empty_batches(kind):
    model, none = RBM((2, 3), 4, visible_kind=kind), torch.zeros(0, 2, 3)
    assert model.free_energy(none).shape == (0,) and model.reconstruct(none).shape == (0, 2, 3)
    assert model.sample(torch.arange(0), seed=0, steps=2).shape == (0, 2, 3)
    with pytest.raises(ValueError, match="batch has no rows, wanted at least one"):
        model.loss(none)


def test_batches_that_cannot_be_are_refused():
    model, ids = RBM((2, 3), 4), torch.arange(2)
    with pytest.raises(ValueError, match=r"the batch has shape \(5, 6\), wanted \(B, 2, 3\)"):
        model.loss(torch.zeros(5, 6))
    with pytest.raises(ValueError, match=r"batch ranges from 0\.0 to 255\.0, wanted 0 to 1"):
        model.loss(torch.tensor([0, 255] * 3, dtype=torch.uint8).view(1, 2, 3))
    with pytest.raises(ValueError, match=r"start ranges from 0\.5 to 0\.5, wanted 0 and 1"):
        model.sample(ids, seed=0, start=torch.full((2, 2, 3), 0.5))
    with pytest.raises(ValueError, match=r"sample_ids has shape \(2,\), wanted \(3,\)"):
        model.sample(ids, seed=0, start=torch.zeros(3, 2, 3))
    with pytest.raises(ValueError, match="steps is 0, wanted at least 1"):
        model.sample(ids, seed=0, steps=0, probabilities=True)
    with pytest.raises(ValueError, match="beta holds nan"):
        model.sample(ids, seed=0, beta=math.nan)
    with pytest.raises(ValueError, match=r"known is torch\.bool \(3,\), wanted torch\.bool \(2, 3\)"):
        model.inpaint(torch.zeros(2, 2, 3), torch.ones(3, dtype=torch.bool), seed=0)
    with pytest.raises(ValueError, match=r"known is torch\.float32"):
        model.inpaint(torch.zeros(2, 2, 3), torch.ones(2, 3), seed=0)
    with pytest.raises(TypeError, match="known is list, wanted a bool tensor"):
        model.inpaint(torch.zeros(2, 2, 3), [[True] * 3] * 2, seed=0)
    with pytest.raises(TypeError, match="the batch is list, wanted a tensor"):
        model.loss([0.0])
    with pytest.raises(TypeError, match=r"the batch is torch\.sparse_coo, wanted a dense tensor"):
        model.loss(torch.zeros(2, 2, 3).to_sparse())
    known = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"v has shape \(5, 6\), wanted \(B, 2, 3\)"):
        model.inpaint(torch.zeros(5, 6), known, seed=0)
    with pytest.raises(TypeError, match="v is ndarray, wanted a tensor"):
        model.inpaint(np.zeros((2, 2, 3)), known, seed=0)
    with pytest.raises(ValueError, match="chains is 1, wanted at least 2"):
        model.log_partition(seed=0, chains=1)
    with pytest.raises(ValueError, match="the smaller layer has 30 units, wanted at most 24"):
        RBM(40, 30).exact_log_partition()


def test_log_likelihood_takes_an_estimate_and_inpainting_reads_known_units_alone():
    model = RBM(6, 3, seed=1)
    v = torch.tensor([[1.0, 0, 1, 0, torch.nan, 0.5]])
    known = torch.tensor([True, True, True, True, False, False])
    filled = model.inpaint(v, known, seed=0, steps=2)
    assert torch.equal(filled[0, :4], v[0, :4].bool())
    log_z = model.log_partition(seed=0, chains=10, steps=10)
    assert torch.equal(model.log_likelihood(filled, log_z), model.log_likelihood(filled, log_z.value))

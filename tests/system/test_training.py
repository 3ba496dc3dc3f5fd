"""The training loop: what it minimises, that it is deterministic, and what it says about bad input."""

import numpy as np
import pytest
import torch
from training_toy import Line, data

from fastgen.training import Epoch, train


class Mean(torch.nn.Module):
    """Fits a constant: the loss is (value - batch)^2, so that each update can be written down."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))
        self.batches = []

    def loss(self, batch):
        if self.training:
            self.batches.append(batch.clone())
        return ((self.value - batch) ** 2).mean()


def fit(model=None, items=None, **arguments):
    arguments = {"epochs": 2, "batch_size": 16, "progress": False} | arguments
    model = Line() if model is None else model
    return train(model, data() if items is None else items, **arguments)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_finds_the_minimum(optimizer):
    model = Line()
    result = fit(model, optimizer=optimizer, epochs=120, lr=0.03 if optimizer == "adamw" else 0.01)
    # Dropout with probability p makes the best weights (1 - p) times those of the plane.
    assert torch.allclose(model.weight, 0.9 * torch.tensor([1.0, 2.0, 3.0]), atol=0.15)
    assert result.history[-1].validation < 0.1 * result.history[0].validation


def test_sgd_takes_the_steps_of_the_formula():
    model = Mean()
    fit(model, torch.ones(4), steps=3, epochs=None, optimizer="sgd", lr=0.1, weight_decay=0.5, validation=0)
    value, momentum = 0.0, 0.0
    for _ in range(3):
        momentum = 0.9 * momentum + 2 * (value - 1) + 0.5 * value
        value -= 0.1 * momentum
    assert model.value.item() == pytest.approx(value, rel=1e-6)


def test_adamw_takes_the_steps_of_the_formula():
    model = Mean()
    fit(model, torch.ones(4), steps=3, epochs=None, lr=0.1, weight_decay=0.5, validation=0)
    value, first, second = 0.0, 0.0, 0.0
    for step in (1, 2, 3):
        gradient = 2 * (value - 1)
        value -= 0.1 * 0.5 * value
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        value -= 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
    assert model.value.item() == pytest.approx(value, rel=1e-5)


def test_the_average_follows_its_formula_and_is_the_result():
    values, model = [], Mean()
    for steps in (1, 2, 3):
        plain = Mean()
        fit(plain, torch.ones(4), steps=steps, epochs=None, validation=0)
        values.append(plain.value.item())
    fit(model, torch.ones(4), steps=3, epochs=None, validation=0, ema=0.75)
    average = 0.0
    for value in values:
        average = 0.75 * average + 0.25 * value
    assert model.value.item() == pytest.approx(average, rel=1e-6)


def test_clipping_bounds_the_gradient():
    model = Mean()
    fit(
        model,
        torch.full((4,), 1e6),
        steps=1,
        epochs=None,
        optimizer="sgd",
        lr=1.0,
        clip_norm=0.5,
        validation=0,
    )
    assert model.value.item() == pytest.approx(0.5, rel=1e-5)


def test_each_epoch_shows_every_training_item_once_in_an_order_of_its_own():
    model = Mean()
    result = fit(model, torch.arange(50.0), epochs=3, validation=0.2)
    epochs = [torch.cat(model.batches[i : i + 3]) for i in (0, 3, 6)]
    assert [len(batch) for batch in model.batches[:3]] == [16, 16, 8]
    kept = epochs[0].sort().values
    assert len(kept.unique()) == 40
    assert all(torch.equal(epoch.sort().values, kept) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], kept)
    assert [epoch[:2] for epoch in result.history] == [(1, 3), (2, 6), (3, 9)]


def test_the_validation_loss_is_that_of_the_items_held_out():
    model = Mean(2.0)
    result = fit(model, torch.arange(50.0), epochs=1, validation=0.2, lr=1e-9)
    kept = torch.cat(model.batches)
    held_out = torch.tensor([value for value in range(50) if value not in kept.tolist()], dtype=torch.float32)
    assert len(held_out) == 10
    assert result.history[0].validation == pytest.approx(((2.0 - held_out) ** 2).mean().item(), rel=1e-6)
    assert result.history[0].loss == pytest.approx(((2.0 - kept) ** 2).mean().item(), rel=1e-6)


def test_the_loss_of_an_epoch_is_the_mean_over_its_items():
    losses = []

    class Recording(Mean):
        def loss(self, batch):
            value = super().loss(batch)
            losses.append((value.item(), len(batch)))
            return value

    result = fit(Recording(), torch.arange(40.0), epochs=3, lr=1.0, validation=0)
    for epoch, steps in zip(result.history, (losses[i : i + 3] for i in (0, 3, 6)), strict=True):
        assert epoch.loss == pytest.approx(sum(value * items for value, items in steps) / 40, rel=1e-6)


def test_patience_stops_and_gives_the_best_state_back():
    class Worsening(Mean):
        """Its validation loss falls for some epochs, then rises."""

        def loss(self, batch):
            target = 2.0 if self.training else 0.75
            return ((self.value - target) ** 2).mean()

    model = Worsening()
    result = fit(model, torch.zeros(20), epochs=50, lr=0.1, patience=4)
    losses = [epoch.validation for epoch in result.history]
    assert result.stopped_early and result.best == result.history[int(np.argmin(losses))]
    assert len(result.history) == result.best.epoch + 4 and 1 < result.best.epoch < 10
    with torch.no_grad():
        assert model.eval().loss(torch.zeros(1)).item() == pytest.approx(min(losses), rel=1e-6)


def test_without_patience_it_runs_to_the_end():
    result = fit(epochs=4)
    assert not result.stopped_early and result.steps == 4 * 6


def test_validation_leaves_buffers_and_modes_as_they_were():
    model = Line().eval()
    fit(model, steps=12, epochs=None)
    assert model.calls == 12 and not model.training


@pytest.mark.parametrize("arguments", [{}, {"ema": 0.9, "optimizer": "sgd", "clip_norm": 1.0}])
def test_the_same_arguments_give_the_same_bits_whatever_torchs_generator(arguments):
    models = [Line(), Line()]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        fit(model, **arguments)
        assert torch.equal(torch.get_rng_state(), before)
    assert models[0].fingerprint() == models[1].fingerprint()


def test_another_seed_gives_another_result():
    models = [Line(), Line()]
    for seed, model in enumerate(models):
        fit(model, seed=seed)
    assert not torch.equal(models[0].weight, models[1].weight)


def test_what_is_not_to_be_trained_stays():
    model = Line()
    fit(model)
    assert torch.equal(model.frozen, torch.ones(2)) and torch.equal(model.unused, torch.ones(2))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_data_may_be_an_array_and_smaller_than_a_batch():
    result = fit(Mean(), np.arange(5, dtype=np.float32), epochs=3, validation=0)
    assert result.steps == 3 and result.history[0].validation is None


def test_the_callback_gets_each_epoch():
    epochs = []
    result = fit(callback=epochs.append)
    assert epochs == result.history and isinstance(epochs[0], Epoch)


def test_progress_shows_the_loss_and_can_be_hidden(capsys):
    fit(progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown and "loss=" in shown
    fit()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"steps": 3}, ValueError, "steps is 3 and epochs is 2, wanted exactly one of them"),
        ({"epochs": None}, ValueError, "steps is None and epochs is None, wanted exactly one"),
        ({"epochs": 0}, ValueError, "epochs is 0, wanted at least 1"),
        ({"epochs": None, "steps": 1.5}, TypeError, r"steps is 1\.5, wanted an int of at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size is 0, wanted at least 1"),
        ({"optimizer": "adam"}, ValueError, "optimizer is 'adam', wanted one of adamw, sgd"),
        ({"lr": 0}, ValueError, "lr is 0, wanted a finite number above 0"),
        ({"lr": float("nan")}, ValueError, "lr is nan, wanted a finite number above 0"),
        ({"weight_decay": -1}, ValueError, "weight_decay is -1, wanted a finite number of at least 0"),
        ({"ema": 1.0}, ValueError, r"ema is 1\.0, wanted None or a number between 0 and 1"),
        ({"clip_norm": 0.0}, ValueError, r"clip_norm is 0\.0, wanted None or a finite number above 0"),
        ({"validation": 1.0}, ValueError, r"validation is 1\.0, wanted a share in \[0, 1\)"),
        ({"patience": 0}, ValueError, "patience is 0, wanted at least 1"),
        ({"patience": 2, "validation": 0}, ValueError, "validation is 0, wanted .* because patience is set"),
        ({"seed": "1"}, TypeError, "seed is '1', wanted an int"),
        (
            {"model": torch.nn.Linear(1, 1)},
            TypeError,
            r"model is Linear, wanted a torch module with loss\(batch\)",
        ),
        (
            {"items": [torch.ones(3), torch.ones(4)]},
            ValueError,
            r"shapes \[\(3,\), \(4,\)\], wanted tensors of one",
        ),
        ({"items": torch.ones(())}, ValueError, r"shapes \[\(\)\], wanted tensors"),
        ({"items": torch.ones(0, 3)}, ValueError, r"shapes \[\(0, 3\)\], wanted tensors"),
        ({"items": ()}, ValueError, r"shapes \[\], wanted tensors"),
        ({"items": "digits"}, TypeError, "data is not a tensor or a tuple of tensors"),
        ({"items": torch.ones(1)}, ValueError, "data has 1 items, wanted more than the 1 held out"),
    ],
)
def test_a_bad_argument_is_named(change, error, message):
    with pytest.raises(error, match=message):
        fit(**change)


@pytest.mark.parametrize(
    "loss, error, message",
    [
        (lambda value: value.item(), TypeError, r"Bad\.loss returned float, wanted a scalar tensor"),
        (
            lambda value: value.expand(2),
            ValueError,
            r"returned shape \(2,\), requires_grad True, wanted a scalar",
        ),
        (
            lambda value: value.detach(),
            ValueError,
            r"returned shape \(\), requires_grad False, wanted a scalar",
        ),
    ],
)
def test_what_a_bad_loss_returns_is_explained(loss, error, message):
    class Bad(Mean):
        def loss(self, batch):
            return loss(self.value * 1)

    with pytest.raises(error, match=message):
        fit(Bad(), torch.ones(8))


def test_a_model_without_parameters_is_refused():
    class Nothing(torch.nn.Module):
        def loss(self, batch):
            return batch.mean()

    with pytest.raises(ValueError, match="Nothing has no parameter that requires a gradient"):
        fit(Nothing(), torch.ones(8))


@pytest.mark.parametrize("clip_norm, what", [(None, "the loss"), (1.0, "the norm of the gradient")])
def test_a_training_that_diverges_says_so(clip_norm, what):
    model = Mean()
    model.value.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        FloatingPointError, match=rf"{what} is (nan|-?inf) at step \d; lower lr \(now 0\.1\) or"
    ):
        fit(model, torch.ones(64), lr=0.1, steps=3, epochs=None, clip_norm=clip_norm, validation=0)


def test_spoiled_parameters_are_seen_at_the_end():
    model = Mean()
    model.value.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="value is nan at step 1; lower lr"):
        fit(model, torch.ones(8), steps=1, epochs=None, validation=0)

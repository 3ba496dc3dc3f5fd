"""Training in a directory: stopping and going on give the same bits, and nothing that was written is lost."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from training_toy import SETTINGS, Line, data

import fastgen.models
from fastgen.training import loop, train

SCRIPT = Path(__file__).with_name("training_toy.py")


def fit(out, model=None, items=None, **arguments):
    length = {} if "steps" in arguments else {"epochs": 4}
    arguments = SETTINGS | length | {"progress": False} | arguments
    return train(Line() if model is None else model, data() if items is None else items, out=out, **arguments)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def header(directory):
    with safetensors.safe_open(directory / "checkpoint.safetensors", "pt") as file:
        return json.loads(file.metadata()["fastgen"])


def rewrite(directory, change):
    """Change the stored tensors and metadata in place, and leave out the checksum, as no damage does."""
    path = directory / "checkpoint.safetensors"
    tensors, metadata = safetensors.torch.load_file(path), header(directory)
    metadata.pop("sha256")
    change(tensors, metadata)
    safetensors.torch.save_file(tensors, path, {"fastgen": json.dumps(metadata)})


def test_a_checkpoint_whose_bytes_changed_is_refused_and_kept(tmp_path):
    fit(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged: it is not what was written"):
        fit(tmp_path)
    assert contents(tmp_path) == before


def test_the_directory_holds_the_model_and_the_checkpoint(tmp_path):
    model = Line()
    fit(tmp_path, model)
    assert sorted(contents(tmp_path)) == ["checkpoint.safetensors", "config.json", "model.safetensors"]
    assert fastgen.models.load(tmp_path).fingerprint() == model.fingerprint()


def test_a_directory_changes_nothing_about_the_result(tmp_path):
    models = [Line(), Line()]
    results = [fit(out, model) for out, model in zip((None, tmp_path), models, strict=True)]
    assert models[0].fingerprint() == models[1].fingerprint() and results[0] == results[1]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [6, 9, 13])  # 6 steps an epoch: at the end of one, in the middle, just after
def test_a_run_in_two_parts_gives_the_bits_of_a_run_in_one(tmp_path, optimizer, stop):
    fit(tmp_path / "parts", steps=stop, optimizer=optimizer)
    parts = fit(tmp_path / "parts", steps=20, optimizer=optimizer)
    whole = fit(tmp_path / "whole", steps=20, optimizer=optimizer)
    assert parts == whole and [epoch.epoch for epoch in whole.history] == [1, 2, 3]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_run_is_taken_up_again_with_the_same_bits(tmp_path, optimizer):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, SCRIPT, out, "8", optimizer], stderr=subprocess.DEVNULL)
    while not (out / "checkpoint.safetensors").exists() or header(out)["counters"]["step"] < 12:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert header(out)["counters"]["step"] < 48 and not (out / "model.safetensors").exists()
    (out / "checkpoint.safetensors.partial").write_bytes(b"half")
    resumed = fit(out, epochs=8, optimizer=optimizer)
    assert resumed == fit(whole, epochs=8, optimizer=optimizer)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_long_epoch_is_stored_midway_and_taken_up_there_with_the_same_bits(
    tmp_path, optimizer, monkeypatch
):
    class Killed(Exception):
        pass

    def mortal(self, batch):
        if self.training and self.calls == 10:  # in the middle of the second epoch
            raise Killed
        return loss(self, batch)

    loss = Line.loss
    with monkeypatch.context() as patched:
        patched.setattr(Line, "loss", mortal)
        with pytest.raises(Killed):
            fit(tmp_path / "epochs", optimizer=optimizer)
        patched.setattr(loop, "MOST_LOST", 0.0)
        with pytest.raises(Killed):
            fit(tmp_path / "parts", optimizer=optimizer)
    assert header(tmp_path / "epochs")["counters"]["step"] == 6
    counters = header(tmp_path / "parts")["counters"]
    assert counters["step"] > 6 and counters["step"] % 6 and counters["items"] > 0
    models = [Line(), Line()]
    results = [
        fit(tmp_path / name, model, optimizer=optimizer)
        for name, model in zip(("parts", "whole"), models, strict=True)
    ]
    assert results[0] == results[1] and models[0].fingerprint() == models[1].fingerprint()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_finished_run_is_not_trained_further(tmp_path):
    first, again = Line(), Line()
    result = fit(tmp_path, first)
    before = contents(tmp_path)
    assert fit(tmp_path, again) == result
    assert contents(tmp_path) == before and again.fingerprint() == first.fingerprint()


def test_a_run_that_patience_ended_stays_ended(tmp_path):
    arguments = {"patience": 1, "lr": 1.0, "epochs": 50}
    result = fit(tmp_path, **arguments)
    assert result.stopped_early and result.steps < 300
    assert fit(tmp_path, **(arguments | {"epochs": 60})) == result


def test_a_callback_that_fails_loses_nothing(tmp_path):
    def interrupt(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", callback=interrupt)
    fit(tmp_path / "parts")
    fit(tmp_path / "whole")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": 0.1}, r"lr 0\.05 there, 0\.1 here"),
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"optimizer": "sgd"}, "optimizer 'adamw' there, 'sgd' here"),
        ({"ema": None, "batch_size": 8}, r"batch_size 16 there, 8 here; ema 0\.9 there, None here"),
        ({"items": data(101)}, r"data '\w+' there, '\w+' here"),
        ({"model": Line(4), "items": data(size=4)}, r"config {'size': 3} there, {'size': 4} here; data .*"),
    ],
)
def test_another_run_is_refused_and_nothing_is_lost(tmp_path, change, message):
    fit(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"belongs to another run \({message}\); give another directory"):
        fit(tmp_path, **change)
    assert contents(tmp_path) == before


def test_another_class_of_model_is_refused(tmp_path):
    class Other(Line):
        pass

    fit(tmp_path)
    with pytest.raises(ValueError, match=r"another run \(model 'Line' there, 'Other' here\)"):
        fit(tmp_path, Other())


def test_fewer_steps_than_were_done_are_refused(tmp_path):
    fit(tmp_path, steps=13)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is at step 13, past the 12 steps asked for"):
        fit(tmp_path, epochs=2)
    assert contents(tmp_path) == before


def test_a_directory_that_holds_a_model_only_is_refused(tmp_path):
    Line().save(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds a model but no checkpoint\.safetensors; give another directory"
    ):
        fit(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda tensors, _: tensors.update({"model.gain": torch.ones(1)}),
            r"foreign key 'model\.gain'; wanted are",
        ),
        (
            lambda tensors, _: tensors.pop("average.bias"),
            r"lacks the key 'average\.bias', wanted with shape \(\)",
        ),
        (
            lambda tensors, _: tensors.pop("optimizer.bias.exp_avg"),
            r"lacks the key 'optimizer\.bias\.exp_avg'",
        ),
        (
            lambda tensors, _: tensors.update({"best.weight": torch.ones(4)}),
            r"'best\.weight' has shape \(4,\), wanted \(3,\)",
        ),
        (lambda _, metadata: metadata.update(format=2), "has format 2, this fastgen reads 1"),
        (lambda _, metadata: metadata.clear(), "has format None, this fastgen reads 1"),
        (lambda _, metadata: metadata.pop("run"), "lacks the key 'run'"),
        (lambda _, metadata: metadata["counters"].pop("step"), "lacks the key 'step'"),
        (lambda _, metadata: metadata.update(run=[1]), r"'run' is \[1\], wanted dict"),
        (lambda _, metadata: metadata.update(counters=[1]), r"'counters' is \[1\], wanted dict"),
        (lambda _, metadata: metadata["counters"].update(step="x"), "'step' is 'x', wanted int"),
        (lambda _, metadata: metadata["counters"].update(history=None), "'history' is None, wanted list"),
        (
            lambda _, metadata: metadata["counters"].update(history=[[1, 6]]),
            r"the epoch \[1, 6\], wanted \[epoch, step, loss, validation\]",
        ),
        (
            lambda _, metadata: metadata["counters"].update(best=[1, 6, "low", None]),
            r"'loss' is 'low', wanted float \| int",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_explained_and_kept(tmp_path, change, message):
    fit(tmp_path)
    rewrite(tmp_path, change)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"checkpoint\.safetensors:? .*{message}"):
        fit(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "text, message", [("{", "is not valid JSON"), ("[1]", "holds a JSON list, wanted an object")]
)
def test_a_checkpoint_whose_metadata_is_no_object_is_explained(tmp_path, text, message):
    path = tmp_path / "checkpoint.safetensors"
    safetensors.torch.save_file({"x": torch.ones(1)}, path, {"fastgen": text})
    with pytest.raises(ValueError, match=rf"checkpoint\.safetensors {message}"):
        fit(tmp_path)


def test_a_checkpoint_of_the_wrong_shape_leaves_the_model_as_it_was(tmp_path):
    fit(tmp_path)
    rewrite(tmp_path, lambda tensors, _: tensors.update({"best.weight": torch.ones(4)}))
    model = Line()
    before = model.fingerprint()
    with pytest.raises(ValueError, match="has shape"):
        fit(tmp_path, model)
    assert model.fingerprint() == before


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_truncated_checkpoint_is_named_and_kept(tmp_path, keep):
    fit(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is truncated or not a safetensors file"):
        fit(tmp_path)
    assert contents(tmp_path) == before


def test_a_loss_that_is_nan_keeps_the_last_good_checkpoint(tmp_path):
    class Spoiled(Line):
        """Its loss is NaN from the 16th step on."""

        def loss(self, batch):
            value = super().loss(batch)
            return value * float("nan") if self.calls > 15 else value

    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 15; lower lr .* is kept"):
        fit(tmp_path, Spoiled())
    assert header(tmp_path)["counters"]["step"] == 12
    tensors = safetensors.torch.load_file(tmp_path / "checkpoint.safetensors")
    assert all(bool(value.isfinite().all()) for value in tensors.values())


def test_parameters_that_became_nan_are_not_stored(tmp_path):
    model = Line()
    model.bias.register_hook(lambda gradient: gradient * (float("nan") if model.calls == 13 else 1))
    with pytest.raises(FloatingPointError, match=r"bias is nan at step 13; lower lr .* is kept"):
        fit(tmp_path, model, steps=13, clip_norm=None)
    assert header(tmp_path)["counters"]["step"] == 12


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    fit(tmp_path, epochs=2)
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(OSError, match=r"cannot write .*checkpoint\.safetensors: .* is kept"):
            fit(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == before
    fit(tmp_path)
    fit(tmp_path / "whole")
    assert (tmp_path / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write to .*file.*; give a directory that can be written to"):
        fit(tmp_path / "file" / "run")
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_directory_that_another_process_trains_in_is_refused(tmp_path):
    process = subprocess.Popen([sys.executable, SCRIPT, tmp_path, "1000", "sgd"], stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "checkpoint.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match="another process is writing to"):
            fit(tmp_path, optimizer="sgd", epochs=1000)
    finally:
        process.kill()
        process.wait()

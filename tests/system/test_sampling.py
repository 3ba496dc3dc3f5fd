"""Sampling into memory and into a directory: always the same samples, whatever stops and begins again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling_toy import MANIFEST, Plain, Spins, Toy, contents, sample, wanted

from fastgen import random, sampling
from fastgen.models import NSF, Ising
from fastgen.sampling import manifest

SCRIPT = Path(__file__).with_name("sampling_toy.py")


# In memory


@pytest.mark.parametrize("batch_size", [1, 2, 7, 25, 26, None])
def test_samples_do_not_depend_on_the_batch_size(batch_size):
    assert torch.equal(sample(batch_size=batch_size), wanted(25))


def test_samples_do_not_depend_on_the_first_id():
    assert torch.equal(sample(n=9, first=7), sample()[7:16])
    assert torch.equal(sample(n=2, first=2**56 - 2), wanted(2, first=2**56 - 2))


def test_seed_and_options_reach_the_model():
    assert torch.equal(sample(seed=6, shift=1.5), wanted(25, seed=6, shift=1.5))


def test_no_seed_takes_one_from_torchs_generator():
    torch.manual_seed(1)
    one = sample(seed=None)
    torch.manual_seed(1)
    assert torch.equal(one, sample(seed=None)) and not torch.equal(one, sample(seed=None))


def test_batches_are_as_large_as_asked():
    model = Toy()
    sample(model, 10, batch_size=4)
    assert model.batches == [4, 4, 2]


def test_a_module_is_sampled_in_evaluation_mode_without_gradients_and_keeps_its_mode():
    model = Toy()
    model.dropout.eval()
    assert not sample(model).requires_grad
    assert model.training and not model.dropout.training
    model.dropout.train()
    assert torch.equal(sample(model), wanted(25))  # dropout is off
    assert model.dropout.training


def test_the_first_member_of_a_tuple_is_the_sample():
    samples = sample(Plain(), batch_size=3)
    assert samples.dtype == torch.bool
    assert torch.equal(samples, random.bernoulli(0.5, 5, torch.arange(25), n=4))


def test_progress_is_shown_with_rate_and_can_be_hidden(capsys):
    sample(progress=True)
    shown = capsys.readouterr().err
    assert "25/25" in shown and "sample/s" in shown
    sample()
    assert capsys.readouterr().err == ""


def test_a_tensor_with_an_entry_for_each_sample_is_shared_out(tmp_path):
    shift = torch.arange(25.0).reshape(25, 1, 1)
    expected = wanted(25) + shift
    for batch_size in (1, 4, 25, None):
        assert torch.equal(sample(batch_size=batch_size, shift=shift), expected)
    sample(n=25, out=tmp_path, shard_size=7, shift=shift)
    assert torch.equal(sampling.load(tmp_path), expected)
    assert torch.equal(sample(n=5, first=20, shift=shift[20:]), expected[20:])
    for whole in (torch.tensor(1.5), torch.arange(6.0).reshape(2, 3), shift[:1]):
        assert torch.equal(sample(shift=whole), wanted(25) + whole)


def test_a_flow_gets_the_context_of_each_batch():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = NSF(2, classes=3, steps=2, hidden=8)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    classes = torch.arange(10) % 3
    each = [flow.sample(torch.tensor([i]), seed=5, context=classes[i : i + 1])[0] for i in range(10)]
    assert torch.equal(sample(flow, 10, batch_size=4, context=classes), torch.stack(each))
    assert not torch.equal(sample(flow, 10, batch_size=4, context=classes.flip(0)), torch.stack(each))


def test_an_array_of_numpy_is_shared_out_as_a_tensor_is(tmp_path):
    shift = torch.arange(25.0).reshape(25, 1, 1)
    assert torch.equal(sample(shift=shift.numpy()), wanted(25) + shift)
    sample(out=tmp_path, shard_size=7, shift=shift.numpy())
    assert torch.equal(sampling.load(tmp_path), wanted(25) + shift)
    assert torch.equal(sample(shift=shift[:1].numpy()), wanted(25) + shift[:1])


@pytest.mark.parametrize("entry", [1, 0.5, [1.0, 2.0], (1, 2), torch.tensor(1.0)])
def test_a_list_of_as_many_entries_as_samples_is_refused_because_it_may_mean_two_things(entry):
    for batch_size in (1, 25):  # whatever the batch
        with pytest.raises(
            TypeError, match="shift is a list of 25 entries for 25 samples, wanted a tensor if"
        ):
            sample(shift=[entry] * 25, batch_size=batch_size)
    seen = []
    model = Toy()
    model.sample = lambda ids, seed, shift: (seen.append(shift), Toy.sample(model, ids, seed=seed))[1]
    for whole in ((entry,) * 25, [entry] * 24, ["a"] * 25):
        sample(model, shift=whole)
        assert seen and all(given is whole for given in seen)
        seen.clear()


# In a directory


@pytest.mark.parametrize("n, shard_size", [(25, 10), (30, 10), (3, 10), (25, 1)])
def test_shards_hold_the_samples(tmp_path, n, shard_size):
    out = tmp_path / "deep" / "run"
    assert sample(n=n, out=out, shard_size=shard_size, shift=0.5) == out
    loaded = sampling.load(out)
    assert torch.equal(loaded, wanted(n, shift=0.5))
    assert len(list(out.glob("shard-*.npy"))) == -(-n // shard_size)


def test_the_manifest_says_what_is_there(tmp_path):
    sample(n=25, out=tmp_path, shard_size=10, first=3, shift=0.5)
    there = json.loads((tmp_path / "manifest.json").read_text())
    shards, fingerprint = there["shards"], there["fingerprint"]
    assert there == MANIFEST | {"shards": shards, "fingerprint": fingerprint}
    assert len(fingerprint) == 64
    assert [(shard["first"], shard["count"]) for shard in shards] == [(3, 10), (13, 10), (23, 5)]
    for shard in shards:
        data = (tmp_path / f"shard-{shard['index']:06d}.npy").read_bytes()
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_directory_does_not_depend_on_the_batch_size(tmp_path):
    for batch_size in (3, 10, None):
        sample(out=tmp_path / str(batch_size), batch_size=batch_size, shard_size=10)
    assert contents(tmp_path / "3") == contents(tmp_path / "10") == contents(tmp_path / "None")


def test_a_killed_run_is_taken_up_again(tmp_path):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, SCRIPT, out, "60"], stderr=subprocess.DEVNULL)
    while len(list(out.glob("shard-*.npy"))) < 2:  # a run that never gets so far ends by itself
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(json.loads((out / "manifest.json").read_text())["shards"])
    assert 1 <= done < 6
    with pytest.raises(ValueError, match=r"lacks \d+ of 60 samples; repeat the call"):
        sampling.load(out)
    model = Toy()
    sample(model, 60, out=out, shard_size=10)
    assert sum(model.batches) == 60 - 10 * done  # what was there was not made again
    sample(n=60, out=whole, shard_size=10)
    assert contents(out) == contents(whole)
    assert torch.equal(sampling.load(out), wanted(60))


def test_many_shards_are_listed_together_and_all_when_a_run_ends(tmp_path, monkeypatch):
    class Failing(Toy):
        def sample(self, sample_ids, **arguments):
            if 40 in sample_ids:
                raise KeyboardInterrupt
            return super().sample(sample_ids, **arguments)

    class Clock:  # a write of the manifest takes one tick, and so does a shard
        ticks = 0

        def monotonic(self):
            self.ticks += 1
            return self.ticks

    written, write_json = [], manifest.files.write_json
    monkeypatch.setattr(manifest, "time", Clock())
    monkeypatch.setattr(
        manifest.files,
        "write_json",
        lambda path, value: (written.append(len(value["shards"])), write_json(path, value)),
    )
    with pytest.raises(KeyboardInterrupt):
        sample(Failing(), 60, out=tmp_path, shard_size=1, batch_size=1)
    assert len(written) < 10 and written[-1] == 40
    listed = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    assert [shard["first"] for shard in listed] == list(range(40))


@pytest.mark.parametrize("format", ["npy", "png"])
def test_a_kill_between_shard_and_manifest_or_within_a_file_leaves_nothing_behind(tmp_path, format):
    arguments = {"model": Plain() if format == "npy" else Spins(), "shard_size": 10, "format": format}
    whole, out = tmp_path / "whole", tmp_path / "out"
    sample(n=25, out=whole, **arguments)
    sample(n=25, out=out, **arguments)
    there = json.loads((out / "manifest.json").read_text())
    there["shards"] = there["shards"][:1]  # as if killed before shard 1 was listed
    (out / "manifest.json").write_text(json.dumps(there))
    (out / "manifest.json.partial").write_bytes(b"{")
    inside = out / "shard-000002"
    partial = inside / "000000000021.png.partial" if format == "png" else out / "shard-000002.npy.partial"
    partial.write_bytes(b"half")
    sample(n=25, out=out, **arguments)
    assert contents(out) == contents(whole)


def test_a_finished_run_is_left_as_it_is(tmp_path):
    sample(out=tmp_path, shard_size=10)
    before = contents(tmp_path)
    model = Toy()
    sample(model, out=tmp_path, shard_size=10)
    assert model.batches == [] and contents(tmp_path) == before


def test_a_shard_that_is_gone_is_made_again(tmp_path):
    sample(out=tmp_path, shard_size=10)
    before = contents(tmp_path)
    (tmp_path / "shard-000001.npy").unlink()
    with pytest.raises(ValueError, match=r"shard-000001\.npy is missing or damaged"):
        sampling.load(tmp_path)
    model = Toy()
    sample(model, out=tmp_path, shard_size=10)
    assert model.batches == [4, 4, 2] and contents(tmp_path) == before


@pytest.mark.parametrize("format", ["npy", "png"])
@pytest.mark.parametrize("n", [25, 30, 47])
def test_a_larger_n_adds_to_the_same_run(tmp_path, n, format):
    arguments = {"model": Spins(), "shard_size": 10, "format": format}
    sample(n=22, out=tmp_path / "grown", **arguments)
    sample(n=n, out=tmp_path / "grown", **arguments)
    sample(n=n, out=tmp_path / "whole", **arguments)
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


def test_one_shard_is_a_memory_map_that_does_not_change_the_file(tmp_path):
    sample(out=tmp_path)
    before = contents(tmp_path)
    loaded = sampling.load(tmp_path)
    loaded += 1
    assert contents(tmp_path) == before
    assert torch.equal(sampling.load(tmp_path), wanted(25))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells the memory maps on Linux alone")
def test_shards_are_mapped_one_after_the_other(tmp_path, monkeypatch):
    sample(n=30, out=tmp_path, shard_size=1)
    held, open_memmap = [], np.lib.format.open_memmap

    def counted(*arguments, **options):
        held.append(Path("/proc/self/maps").read_text().count(str(tmp_path)))
        return open_memmap(*arguments, **options)

    monkeypatch.setattr(np.lib.format, "open_memmap", counted)
    assert torch.equal(sampling.load(tmp_path), wanted(30))
    assert len(held) >= 30 and max(held) <= 2  # a process may hold some 65,000


def test_loading_pictures_or_a_shard_of_another_run_is_refused(tmp_path):
    sample(Spins(), out=tmp_path / "png", format="png")
    with pytest.raises(ValueError, match=r"holds pictures \(png\), load reads npy"):
        sampling.load(tmp_path / "png")
    sample(out=tmp_path / "npy", shard_size=10)
    np.save(tmp_path / "npy" / "shard-000001.npy", np.zeros((10, 3)))
    with pytest.raises(ValueError, match=r"holds float64 \(10, 3\), the manifest says float32 \(10, 2, 3\)"):
        sampling.load(tmp_path / "npy")


# Bad arguments and bad models


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"n": 0}, ValueError, "n is 0, wanted at least 1"),
        ({"n": 2.0}, TypeError, r"n is 2\.0, wanted an int of at least 1"),
        ({"n": True}, TypeError, "n is True, wanted an int"),
        ({"batch_size": 0}, ValueError, "batch_size is 0, wanted at least 1"),
        ({"shard_size": -1}, ValueError, "shard_size is -1, wanted at least 1"),
        ({"first": -1}, ValueError, "first is -1, wanted at least 0"),
        ({"first": 2**56 - 24}, ValueError, r"first \+ n is \d+, wanted at most 2\*\*56"),
        ({"seed": 0.5}, TypeError, r"seed is 0\.5, wanted an int"),
        ({"format": "jpg"}, ValueError, "format is 'jpg', wanted one of npy, png"),
        (
            {"model": Ising(4, 4), "swep": 3},
            TypeError,
            "'swep' is no option of Ising.sample; options are beta",
        ),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "model is Linear, wanted something with sample"),
        ({"model": Ising}, TypeError, "model is the class Ising, wanted a model of that class"),
        ({"device": "gpu"}, ValueError, "device is 'gpu', wanted cpu, cuda or cuda:N"),
        ({"device": torch.device("cuda", 99)}, ValueError, "device is 'cuda:99', but torch finds"),
    ],
)
def test_a_bad_argument_is_named(tmp_path, change, error, message):
    for out in (None, tmp_path / "out"):
        with pytest.raises(error, match=message):
            sample(**({"out": out} | change))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "result, error, message",
    [
        (lambda ids: ids.tolist(), TypeError, r"Bad\.sample returned list, wanted a tensor or a tuple"),
        (lambda ids: (), TypeError, "returned tuple, wanted a tensor"),
        (lambda ids: torch.tensor(1.0), ValueError, r"returned shape \(\) for 4 ids, wanted \(4, \.\.\.\)"),
        (lambda ids: torch.zeros(5, 2), ValueError, r"returned shape \(5, 2\) for 4 ids"),
        (
            lambda ids: torch.zeros(4, 2 + int(ids[0])),
            ValueError,
            r"of \(6,\) torch.float32 after one of \(2,\)",
        ),
    ],
)
def test_what_a_bad_model_returns_is_explained(result, error, message):
    class Bad:
        def sample(self, sample_ids, *, seed):
            return result(sample_ids)

    with pytest.raises(error, match=message):
        sample(Bad(), 8)


def test_a_sample_of_another_shape_than_the_shards_before_is_refused(tmp_path):
    class Growing:
        def sample(self, sample_ids, *, seed):
            return torch.zeros(len(sample_ids), 2 if sample_ids[0] < 10 else 3)

    with pytest.raises(ValueError, match=r"the samples are float32 \[3\], in .* they are float32 \[2\]"):
        sample(Growing(), 20, batch_size=10, shard_size=10, out=tmp_path)
    assert sorted(contents(tmp_path)) == ["manifest.json", "shard-000000.npy"]

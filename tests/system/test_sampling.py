"""Sampling into memory and into a directory: always the same samples, and nothing ever lost."""

import hashlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import fastgen
from fastgen import models, random, sampling

SCRIPT = Path(__file__).with_name("sampling_toy.py")
spec = importlib.util.spec_from_file_location("sampling_toy", SCRIPT)
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
Toy = toy.Toy


class Plain:
    """A model that is no torch module and returns more than the samples."""

    class Result(NamedTuple):
        samples: torch.Tensor
        steps: int

    def sample(self, sample_ids, *, seed):
        return self.Result(random.bernoulli(0.5, seed, sample_ids, n=4), 3)


def wanted(n, *, seed=5, first=0, shift=0.0):
    """What Toy's samples must be, drawn at once and without the engine."""
    ids = torch.arange(first, first + n)
    return 2.0 * random.normal(seed, ids, n=6).reshape(n, 2, 3) + shift


def sample(model=None, n=25, **arguments):
    arguments = {"seed": 5, "batch_size": 4, "progress": False} | arguments
    return fastgen.sample(Toy() if model is None else model, n, **arguments)


def contents(directory):
    """Every file below `directory` with its bytes."""
    paths = [path for path in Path(directory).rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


MANIFEST = {
    "format_version": 1,
    "fastgen": fastgen.__version__,
    "model": "Toy",
    "seed": 5,
    "options": {"shift": 0.5},
    "first": 3,
    "shard_size": 10,
    "format": "npy",
    "n": 25,
    "dtype": "float32",
    "shape": [2, 3],
    "fingerprint": "",
    "shards": [],
}


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
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    shards, fingerprint = manifest["shards"], manifest["fingerprint"]
    assert manifest == MANIFEST | {"shards": shards, "fingerprint": fingerprint}
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


@pytest.mark.parametrize("format", ["npy", "png"])
def test_a_kill_between_shard_and_manifest_or_within_a_file_leaves_nothing_behind(tmp_path, format):
    arguments = {"model": Plain() if format == "npy" else Spins(), "shard_size": 10, "format": format}
    whole, out = tmp_path / "whole", tmp_path / "out"
    sample(n=25, out=whole, **arguments)
    sample(n=25, out=out, **arguments)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"] = manifest["shards"][:1]  # as if killed before shard 1 was listed
    (out / "manifest.json").write_text(json.dumps(manifest))
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


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 6}, "seed 5 there, 6 here"),
        ({"model": Toy(3.0)}, r"fingerprint '\w+' there, '\w+' here"),
        ({"model": Plain()}, r"model 'Toy' there, 'Plain' here; fingerprint .*"),
        ({"shift": 1.0}, r"options {} there, {'shift': 1\.0} here"),
        ({"first": 1}, "first 0 there, 1 here"),
        ({"n": 24}, "n 25 there, 24 here"),
        ({"shard_size": 5}, "shard_size 10 there, 5 here"),
        ({"format": "png"}, "format 'npy' there, 'png' here"),
        ({"seed": 6, "first": 1}, "seed 5 there, 6 here; first 0 there, 1 here"),
    ],
)
def test_another_run_is_refused_and_nothing_is_lost(tmp_path, change, message):
    sample(out=tmp_path, shard_size=10)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"belongs to another run \({message}\); give another directory"):
        sample(**({"out": tmp_path, "shard_size": 10} | change))
    assert contents(tmp_path) == before


def test_a_run_that_failed_before_its_first_shard_does_not_hold_the_directory(tmp_path):
    with pytest.raises(TypeError, match="can only concatenate str|unsupported operand"):
        sample(out=tmp_path, shift="much")
    assert (tmp_path / "manifest.json").exists()
    sample(n=9, out=tmp_path, seed=6)
    assert torch.equal(sampling.load(tmp_path), wanted(9, seed=6))


def test_a_shard_that_was_not_listed_yet_holds_the_directory(tmp_path):
    sample(out=tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"shards": []}))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="seed 5 there, 6 here"):
        sample(out=tmp_path, seed=6)
    assert contents(tmp_path) == before


class Shifted(Plain):
    """Differs from others of its class in one attribute."""

    def __init__(self, shift):
        self.shift = shift


class Stacked(torch.nn.Module):
    """Holds what no state dict does: an attribute deep inside, a module without parameters, a buffer."""

    def __init__(self, slope=0.1, last=torch.nn.ReLU, scale=1.0):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.LeakyReLU(slope), last())
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def sample(self, sample_ids, *, seed):
        return self.scale * self.layers(random.normal(seed, sample_ids, n=4))


@pytest.mark.parametrize(
    "make, other",
    [
        (lambda: Shifted(1), lambda: Shifted(2)),
        (lambda: Shifted({"a": [0.5]}), lambda: Shifted({"a": [0.25]})),
        (lambda: Shifted(torch.zeros(2)), lambda: Shifted(torch.ones(2))),
        (lambda: Shifted(Stacked()), lambda: Shifted(Stacked(slope=0.2))),
        (Stacked, lambda: Stacked(slope=0.2)),
        (Stacked, lambda: Stacked(last=torch.nn.Tanh)),
        (Stacked, lambda: Stacked(scale=2.0)),
    ],
)
def test_models_that_differ_in_anything_they_hold_do_not_share_a_directory(tmp_path, make, other):
    sample(make(), 2, out=tmp_path, shard_size=2)
    sample(make(), 4, out=tmp_path, shard_size=2)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"another run .fingerprint"):
        sample(other(), 4, out=tmp_path, shard_size=2)
    assert contents(tmp_path) == before


def test_a_model_that_cannot_be_told_from_others_needs_a_fingerprint(tmp_path):
    class Named(Shifted):
        def fingerprint(self):
            return "named"

    message = r"Shifted needs a fingerprint\(\), a string: attribute shift is function, wanted numbers"
    with pytest.raises(TypeError, match=message):
        sample(Shifted(lambda x: x), out=tmp_path)
    assert contents(tmp_path) == {} and len(sample(Shifted(lambda x: x))) == 25
    sample(Named(lambda x: x), out=tmp_path)


def test_options_may_be_tensors_and_lists(tmp_path):
    mask = torch.zeros(3)
    options = {"mask": mask, "betas": [0.1, (float("inf"), None)], "names": {"a": True}}
    sample(out=tmp_path, **options)
    sample(out=tmp_path, **options)
    with pytest.raises(ValueError, match="belongs to another run"):
        sample(out=tmp_path, **(options | {"mask": mask + 1}))
    with pytest.raises(TypeError, match="option mask is object, wanted numbers, strings, tensors"):
        sample(out=tmp_path, mask=object())


@pytest.mark.parametrize("name", ["shard-000001.npy", "shard-000002.npy"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_shard_is_named_and_kept(tmp_path, name, damage):
    sample(out=tmp_path, shard_size=10)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is not what was written .*remove it"):
        sample(out=tmp_path, shard_size=10)
    assert contents(tmp_path) == before
    (tmp_path / name).unlink()
    sample(out=tmp_path, shard_size=10)
    assert torch.equal(sampling.load(tmp_path), wanted(25))


def test_a_directory_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"holds thesis\.txt but no manifest\.json; give a new or empty directory"
    ):
        sample(out=tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not valid JSON"),
        ('{"format_version": 2}', "has format version 2, this fastgen reads 1"),
        ('{"format_version": 1}', "lacks the key 'fastgen'"),
        (json.dumps(MANIFEST | {"shards": [{"index": 0}]}), "lacks the key 'first'"),
        (
            json.dumps(MANIFEST | {"shards": [7]}),
            "holds 7, wanted an object with index, first, count, sha256",
        ),
        (json.dumps(MANIFEST | {"shards": None}), "'shards' is None, wanted list"),
        (json.dumps(MANIFEST | {"n": "many"}), "'n' is 'many', wanted int"),
        (json.dumps(MANIFEST | {"shape": 2}), r"'shape' is 2, wanted list \| None"),
        (json.dumps(MANIFEST | {"shard_size": 0}), "'shard_size' is 0, wanted at least 1"),
        ("[]", "holds a JSON list, wanted an object"),
        (json.dumps({key: MANIFEST[key] for key in MANIFEST if key != "n"}), "lacks the key 'n'"),
    ],
)
def test_an_invalid_manifest_is_explained_and_kept(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    for read in (sampling.load, lambda out: sample(out=out)):
        with pytest.raises(ValueError, match=rf"manifest\.json:? {message}"):
            read(tmp_path)
    assert contents(tmp_path) == {"manifest.json": text.encode()}


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            OSError, match=r"cannot write to .*file.*; give a directory that can be written to"
        ):
            sample(out=out)
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_directory_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # the superuser may write anywhere
        with pytest.raises(PermissionError, match=r"cannot write to .*Permission denied; give a directory"):
            sample(out=tmp_path)
    finally:
        os.seteuid(user)


def test_a_directory_that_another_process_writes_to_is_refused(tmp_path):
    process = subprocess.Popen([sys.executable, SCRIPT, tmp_path, "1000"], stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "manifest.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match="another process is writing to"):
            sample(n=1000, out=tmp_path, shard_size=10)
    finally:
        process.kill()
        process.wait()


def test_a_failing_model_keeps_the_shards_made_so_far(tmp_path):
    class Failing(Toy):
        def sample(self, sample_ids, *, seed):
            if sample_ids[0] >= 20:
                raise MemoryError("no room")
            return super().sample(sample_ids, seed=seed)

    with pytest.raises(MemoryError, match="no room"):
        sample(Failing(), out=tmp_path, shard_size=10)
    assert sorted(contents(tmp_path)) == ["manifest.json", "shard-000000.npy", "shard-000001.npy"]
    assert np.array_equal(np.load(tmp_path / "shard-000001.npy"), wanted(10, first=10))


def test_a_full_disk_keeps_the_shards_made_so_far(tmp_path):
    sample(n=300, out=tmp_path / "whole", shard_size=100, batch_size=100)
    sample(n=100, out=tmp_path / "out", shard_size=100, batch_size=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # the manifest fits, a shard does not
        with pytest.raises(
            OSError, match=r"cannot write .*shard-000001\.npy: .*what was written before is kept"
        ):
            sample(n=300, out=tmp_path / "out", shard_size=100, batch_size=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "shard-000000.npy"]
    sample(n=300, out=tmp_path / "out", shard_size=100, batch_size=100)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_one_shard_is_a_memory_map_that_does_not_change_the_file(tmp_path):
    sample(out=tmp_path)
    before = contents(tmp_path)
    loaded = sampling.load(tmp_path)
    loaded += 1
    assert contents(tmp_path) == before
    assert torch.equal(sampling.load(tmp_path), wanted(25))


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
        ({"n": 0}, ValueError, "n is 0, wanted an int of at least 1"),
        ({"n": 2.0}, ValueError, r"n is 2\.0, wanted an int of at least 1"),
        ({"n": True}, ValueError, "n is True, wanted an int"),
        ({"batch_size": 0}, ValueError, "batch_size is 0, wanted an int of at least 1"),
        ({"shard_size": -1}, ValueError, "shard_size is -1, wanted an int of at least 1"),
        ({"first": -1}, ValueError, "first is -1, wanted an int of at least 0"),
        ({"first": 2**56 - 24}, ValueError, r"first \+ n is \d+, wanted at most 2\*\*56"),
        ({"seed": 0.5}, TypeError, r"seed is 0\.5, wanted an int"),
        ({"format": "jpg"}, ValueError, "format is 'jpg', wanted one of npy, png"),
        (
            {"model": models.Ising(4, 4), "swep": 3},
            TypeError,
            "'swep' is no option of Ising.sample; options are beta",
        ),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "model is Linear, wanted something with sample"),
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


class Spins:
    """Lattices of -1 and +1."""

    def sample(self, sample_ids, *, seed):
        bits = random.bernoulli(0.5, seed, sample_ids, n=20)
        return (2 * bits.to(torch.int8) - 1).reshape(-1, 4, 5)

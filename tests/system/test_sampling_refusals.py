"""Which run a directory belongs to: others are refused, what is damaged is named, and nothing is lost."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling_toy import MANIFEST, Plain, Toy, contents, sample, wanted

from fastgen import random, sampling

SCRIPT = Path(__file__).with_name("sampling_toy.py")


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
    with pytest.raises(TypeError, match=r"can only concatenate str|unsupported operand"):
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


def test_a_shard_that_is_no_array_is_not_taken_for_a_pickle(tmp_path):
    sample(out=tmp_path, shard_size=10)
    (tmp_path / "shard-000001.npy").write_bytes(b"x" * 300)
    with pytest.raises(ValueError, match=r"shard-000001\.npy is missing or damaged: (?!.*pickle)"):
        sampling.load(tmp_path)


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

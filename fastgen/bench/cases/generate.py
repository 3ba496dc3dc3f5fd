"""Cases of `generate`: whole language models, from prompts of tokens to as many new tokens, greedily.

`prefill N` is the time to the first token: a prompt of N tokens, and one token after it.

Where both sides compute in float32 the tokens have to be the same. Where weights or activations are rounded
on one side, the logits after the prompts are compared instead.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgen import data
from fastgen.bench.case import Call, Case, Inputs, Match, Peer, Work, needs
from fastgen.bench.matching import exact
from fastgen.bench.peers import ctranslate2_generate, llama_cpp_generate, transformers_generate
from fastgen.models import Transformer

PROMPT, NEW, NEW_IN_BATCH, LONG = 8, 32, 16, 512
# What SmolLM2's tokenizer makes of 53 tokens of prose about language models. On tokens without sense the
# rounded activations of llama.cpp are further off.
PASSAGE = (
    49, 1789, 1743, 36810, 253, 8746, 288, 897, 9624, 338, 654, 1066, 253, 1694, 30, 39870, 14647, 582,
    282, 601, 28, 284, 5634, 1163, 30, 378, 3500, 338, 6650, 260, 10379, 314, 1012, 2268, 327, 971, 9624,
    28, 588, 624, 3547, 16622, 638, 3538, 253, 2244, 1694, 416, 1075, 335, 253, 15595, 30,
)  # fmt: skip
# What rounding may change, root mean square, as a share of the logits' spread: of weights to bfloat16, and of
# activations to 8 bits, which llama.cpp does before every product, and int8 beside rounding its weights.
ROUNDED_WEIGHTS, ROUNDED_ACTIVATIONS, ROUNDED_BOTH = 0.05, 0.15, 0.2


@dataclass(frozen=True)
class Network:
    """What one position takes at the least: weights of the layers and the head, and what attention adds."""

    name: str
    layers: int
    hidden: int
    weights: int  # of one layer
    head: int
    cached: int  # numbers of keys and values that a layer keeps of a position


NETWORKS = {
    "smollm2": Network("SmolLM2", 30, 576, 576 * (2 * 576 + 2 * 192 + 3 * 1536), 49152 * 576, 2 * 192),
    "gpt2": Network("GPT-2 124M", 12, 768, 768 * (4 * 768 + 2 * 3072), 50257 * 768, 2 * 768),
    "tiny": Network("tiny GPT-2", 2, 32, 32 * (4 * 32 + 2 * 128), 320 * 32, 2 * 32),
}
# Bytes of a weight in the layers and in the head.
BYTES = {"Q4_1": (20 / 32, 34 / 32), "float32": (4.0, 4.0), "bfloat16": (2.0, 2.0), "int8": (1.0, 1.0)}


def _inputs(model: str, weights: str, batch: int, prompt: int, new: int, device: str) -> Inputs:
    vocabulary = NETWORKS[model].head // NETWORKS[model].hidden
    places = torch.arange(prompt) + 5 * torch.arange(batch)[:, None]
    prompts = torch.tensor(PASSAGE)[places % len(PASSAGE)] % vocabulary
    return {"model": model, "weights": weights, "prompts": prompts.to(device), "tokens": new}


def _fastgen(inputs: Inputs) -> Call:
    model = _model(inputs["model"], inputs["weights"])
    prompts, new = inputs["prompts"], inputs["tokens"]
    if not new:
        return lambda: model(prompts)[:, -1]
    rows = prompts.tolist()

    def run() -> Tensor:
        found = model.generate(rows, max_new_tokens=new, temperature=0.0, batch_size=len(rows))
        return torch.tensor([generation.tokens for generation in found])

    return run


@functools.cache
def _model(name: str, weights: str) -> Transformer:
    """The model in a format of weights, without a tokenizer: no token ends a text."""
    if name != "smollm2":
        return transformers_generate.as_fastgen(name)
    model = Transformer.from_pretrained(data.smollm2(), format=None if weights == "Q4_1" else weights)
    model.tokenizer = None
    return model


def logits_agree(allowed: float, ours: list[Any], theirs: list[Any]) -> Match:
    """The logits after the prompts differ by at most this share of their spread, root mean square."""
    worst = max(float((a - b).square().mean().sqrt() / b.std()) for a, b in zip(ours, theirs, strict=True))
    return Match(worst <= allowed, f"logits differ by {worst:.2g} of their spread, {allowed:g} allowed")


def _missing(model: str, peer: Callable[[], str | None]) -> str | None:
    """Why there is no peer or no model, or None."""
    try:
        if model == "smollm2":
            data.smollm2()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        return str(error)
    return peer()


def _peers(model: str, weights: str, batch: int) -> tuple[Peer, ...]:
    allowed = ROUNDED_BOTH if weights == "int8" else ROUNDED_WEIGHTS
    same = exact if weights == "float32" else functools.partial(logits_agree, allowed)
    found = [("transformers", transformers_generate.build, same, needs("transformers", "gguf"))]
    if weights == "Q4_1" and batch == 1:
        rounded = functools.partial(logits_agree, ROUNDED_ACTIVATIONS)
        found.append(("llama.cpp", llama_cpp_generate.build, rounded, llama_cpp_generate.missing))
    if model == "gpt2":
        found.append(("ctranslate2", ctranslate2_generate.build, same, needs("ctranslate2")))
    return tuple(
        Peer(name, build, match, missing=functools.partial(_missing, model, missing))
        for name, build, match, missing in found
    )


def _work(network: Network, weights: str, batch: int, prompt: int, new: int) -> Work:
    """Every pass reads the weights once and the keys and values of all positions before it."""
    of_layers, of_head = BYTES[weights]
    layers = network.layers * network.weights
    positions = prompt + new - 1
    seen = positions * (positions + 1) // 2  # positions that positions see, in all
    read_again = seen - prompt * (prompt + 1) // 2
    return Work(
        items=batch * (new if new > 1 else prompt),
        item="tokens",
        reads=new * (layers * of_layers + network.head * of_head)
        + 4 * batch * network.layers * network.cached * read_again,
        flops=2
        * batch
        * (positions * layers + new * network.head + 2 * network.layers * network.hidden * seen),
    )


def _case(model: str, weights: str, batch: int, *, prompt: int = PROMPT, new: int = NEW) -> Case:
    network = NETWORKS[model]
    what = f"batch {batch}" if new > 1 else f"prefill {prompt}"
    timed = functools.partial(_inputs, model, weights, batch, prompt, new)
    logits = functools.partial(_inputs, model, weights, batch, prompt, 0)
    return Case(
        op="generate",
        name=f"{network.name} {weights} {what}",
        inputs=timed,
        fastgen=_fastgen,
        peers=_peers(model, weights, batch),
        work=_work(network, weights, batch, prompt, new),
        quick=model == "tiny",
        checks=None if weights == "float32" else lambda device: [logits(device)],
    )


CASES = (
    _case("tiny", "float32", 2, new=8),
    _case("smollm2", "Q4_1", 1),
    _case("smollm2", "float32", 1),
    _case("smollm2", "bfloat16", 1),
    _case("smollm2", "int8", 1),
    *(_case("smollm2", weights, 32, new=NEW_IN_BATCH) for weights in BYTES),
    _case("smollm2", "Q4_1", 1, new=1),
    _case("smollm2", "Q4_1", 1, prompt=LONG, new=1),
    _case("smollm2", "float32", 1, prompt=LONG, new=1),
    _case("smollm2", "int8", 1, prompt=LONG, new=1),
    _case("gpt2", "float32", 1),
    _case("gpt2", "float32", 16, new=NEW_IN_BATCH),
)

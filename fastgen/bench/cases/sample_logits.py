"""Drawing the next token from logits, vocabularies of Qwen2 (151,936) and SmolLM2 (49,152).

The logits are those of a language model in kind: most tokens far below, and a head of a few dozen that share
most of the probability. What must be read are the logits, once; fastgen returns log-probabilities besides,
which the peers do not. The reference, which is written to be read, gets no more than 8 rows.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs, needs_compiler
from fastgen.bench.matching import exact, statistical
from fastgen.bench.peers import torch_sampling, transformers_sampling

SETTINGS: dict[str, Any] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
PENALTIES: dict[str, Any] = {
    "temperature": 0.8, "top_k": 50,
    "repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2,
}  # fmt: skip
ALL = PENALTIES | {"top_p": 0.9, "min_p": 0.01, "typical_p": 0.9}


def make_logits(rows: int, vocabulary: int, seed: int = 40) -> Tensor:
    """Logits (rows, vocabulary) with a head of 40 tokens, some 8 to 16 above the others' mean."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(rows, vocabulary, generator=generator)
    head = torch.randint(0, vocabulary, (rows, 40), generator=generator)
    return logits.scatter(1, head, 8 + 8 * torch.rand(rows, 40, generator=generator))


def _inputs(rows: int, vocabulary: int, history: int, settings: dict[str, Any], device: str) -> Inputs:
    generator = torch.Generator().manual_seed(41)
    logits = make_logits(rows, vocabulary).to(device)
    output, bias = None, None
    if history:
        output = torch.randint(0, vocabulary, (rows, history), generator=generator).to(device)
        bias = torch.randn(vocabulary, generator=generator).to(device)
    return {"logits": logits, "seed": 42, "output_tokens": output, "logit_bias": bias} | SETTINGS | settings


def _checks(rows: int, vocabulary: int, history: int, settings: dict[str, Any], device: str) -> list[Inputs]:
    """The timed rows, and one row of a small vocabulary many times, for its distribution."""
    small = _inputs(1, 100, history, settings, device)
    many = {
        name: x.expand(5000, -1).contiguous() if name in ("logits", "output_tokens") and x is not None else x
        for name, x in small.items()
    }
    return [_inputs(rows, vocabulary, history, settings, device), many]


def _fastgen(inputs: Inputs) -> Call:
    return lambda: fastgen.ops.sample_logits(**inputs)


def _reference(inputs: Inputs) -> Call:
    def run() -> tuple[Tensor, Tensor]:
        with fastgen.use_backend("reference"):
            return fastgen.ops.sample_logits(**inputs)

    return run


DRAWN = statistical(token=lambda out: out[0].flatten(), parity=lambda out: out[0].flatten() % 2)
REFERENCE = Peer("reference", _reference, exact)
PYTORCH = (
    Peer("eager", torch_sampling.build, DRAWN, unpack=lambda token: (token,)),
    Peer(
        "torch.compile",
        partial(torch_sampling.build, compile=True),
        DRAWN,
        unpack=lambda token: (token,),
        missing=needs_compiler,
    ),
)
TRANSFORMERS = Peer(
    "transformers",
    transformers_sampling.build,
    DRAWN,
    unpack=lambda token: (token,),
    missing=needs("transformers"),
)


def _case(
    rows: int, vocabulary: int, name: str, *, history: int = 0, quick: bool = False, **settings: Any
) -> Case:
    peers = PYTORCH if "typical_p" not in settings else ()
    if not {"presence_penalty", "frequency_penalty"} & set(settings) and not history:
        peers = (TRANSFORMERS, *peers)
    if rows <= 8:
        peers = (REFERENCE, *peers)
    arguments = (rows, vocabulary, history, settings)
    return Case(
        op="sample_logits",
        name=f"B {rows}, V {vocabulary}, {name}",
        inputs=partial(_inputs, *arguments),
        fastgen=_fastgen,
        peers=peers,
        work=Work(items=rows, item="tokens", reads=4.0 * rows * vocabulary),
        quick=quick,
        checks=partial(_checks, *arguments),
    )


CASES = (
    _case(8, 151936, "top-k 50, top-p 0.9", temperature=0.8, top_k=50, top_p=0.9),
    _case(1, 151936, "top-k 50, top-p 0.9", temperature=0.8, top_k=50, top_p=0.9),
    _case(64, 151936, "top-k 50, top-p 0.9", temperature=0.8, top_k=50, top_p=0.9),
    _case(8, 151936, "temperature", temperature=0.8),
    _case(8, 151936, "top-p 0.9", temperature=0.8, top_p=0.9),
    _case(8, 151936, "min-p 0.05", temperature=0.8, min_p=0.05),
    _case(8, 151936, "penalties, top-k 50", history=512, **PENALTIES),
    _case(1, 49152, "top-k 50, top-p 0.9", temperature=0.8, top_k=50, top_p=0.9),
    _case(64, 49152, "top-k 50, top-p 0.9", temperature=0.8, top_k=50, top_p=0.9),
    _case(3, 1000, "temperature", quick=True, temperature=0.7),
    _case(3, 1000, "all", quick=True, history=7, **ALL),
)

"""llama.cpp on the GGUF file of SmolLM2, through llama-cpp-python."""

import functools
import importlib.util
from typing import Any

import numpy as np
import torch

from fastgen import data
from fastgen.bench.case import Call, Inputs


def build(inputs: Inputs) -> Call:
    """Greedy generation for one prompt, which is evaluated anew each time; for 0 tokens its last logits."""
    (prompt,) = inputs["prompts"].tolist()
    new = inputs["tokens"]
    model = _smollm2(len(prompt) + new, torch.get_num_threads())

    def generate() -> torch.Tensor:
        model.reset()
        tokens = model.generate(prompt, temp=0.0)
        return torch.tensor([[next(tokens) for _ in range(new)]])

    def logits() -> torch.Tensor:
        model.reset()
        model.eval(prompt)
        found = np.ctypeslib.as_array(model._ctx.get_logits(), shape=(1, model.n_vocab()))
        return torch.from_numpy(found.copy())

    return generate if new else logits


def missing() -> str | None:
    """Why llama.cpp cannot run here, or None."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "llama_cpp not installed: pip install llama-cpp-python, which compiles for ten minutes"
    return None


@functools.cache
def _smollm2(context: int, threads: int) -> Any:
    from llama_cpp import Llama  # noqa: PLC0415 (optional, and in no extra)

    return Llama(
        str(data.smollm2()),
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=False,
        verbose=False,
    )

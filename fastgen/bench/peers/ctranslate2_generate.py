"""CTranslate2 in float32 on the GPT-2 that transformers holds, converted by its own converter."""

import atexit
import functools
import tempfile
from typing import Any

import torch

from fastgen.bench.case import Call, Inputs
from fastgen.bench.peers import transformers_generate


def build(inputs: Inputs) -> Call:
    """Greedy generation for a batch of prompts of one length."""
    prompts = [[str(token) for token in prompt] for prompt in inputs["prompts"].tolist()]
    new = inputs["tokens"]
    generator = _gpt2(torch.get_num_threads())

    def run() -> torch.Tensor:
        found = generator.generate_batch(
            prompts,
            max_length=new,
            min_length=new,
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
        )
        return torch.tensor([result.sequences_ids[0] for result in found])

    return run


@functools.cache
def _gpt2(threads: int) -> Any:
    import ctranslate2  # noqa: PLC0415 (an optional extra)
    from ctranslate2.converters.transformers import GPT2Loader  # noqa: PLC0415

    model = transformers_generate.gpt2("gpt2")
    spec = GPT2Loader().get_model_spec(model)
    spec.register_vocabulary([str(token) for token in range(model.config.vocab_size)])
    # No token that a prompt can hold ends or begins a text here: the vocabulary is that of the numbers.
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = str(model.config.vocab_size - 1)
    spec.validate()
    spec.optimize(quantization="float32")
    directory = tempfile.TemporaryDirectory(prefix="fastgen-ctranslate2-")
    atexit.register(directory.cleanup)
    spec.save(directory.name)
    return ctranslate2.Generator(
        directory.name, device="cpu", compute_type="float32", intra_threads=threads, inter_threads=1
    )

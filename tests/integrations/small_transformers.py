"""Small models of the library transformers, and the two ways to their texts."""

import warnings

import pytest
import torch

from fastgen import accelerate

transformers = pytest.importorskip("transformers")

END = 7
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": END,
}


def llama(**options):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | options))


def gpt2(**options):
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 320, "n_positions": 96}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=END, **options)
    return transformers.GPT2LMHeadModel(config)


def spread(model, seed=0):
    """The model with weights large enough that tokens differ and some texts end."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def prompts(left_padded=True):
    ids = torch.randint(8, 320, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if left_padded:
        mask[0, :4], mask[2, :1] = 0, 0
        ids[mask == 0] = 0
    return {"input_ids": ids, "attention_mask": mask}


def twins():
    """A Llama, and it accelerated."""
    plain = spread(llama())
    return plain, accelerate(plain)[0]


def generate(model, own=False, **options):
    """`generate`, which must run on fastgen's code, or with `own` must say that it runs on the library's."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = model.generate(**{"pad_token_id": 0, "max_new_tokens": 24, "do_sample": False} | options)
    mine = [str(w.message) for w in said if "transformers' own code" in str(w.message)]
    assert bool(mine) == bool(own), mine
    if own is not False:
        assert own in mine[0]
    return found

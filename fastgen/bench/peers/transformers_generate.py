"""Language models of transformers in float32: SmolLM2 from its GGUF file, and a GPT-2 of random weights."""

import functools
import tempfile
from typing import Any

import torch
from torch import Tensor

from fastgen import data
from fastgen.bench.case import Call, Inputs
from fastgen.models import Transformer

_GPT2_SEED = 0
_GPT2_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "tiny": {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 320, "n_positions": 64},
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def build(inputs: Inputs) -> Call:
    """`generate` with the key and value cache, greedy, as many tokens as asked for, whatever they are.

    For 0 tokens the logits after the prompts (B, vocabulary).
    """
    from transformers import GenerationConfig  # noqa: PLC0415 (an optional extra)

    model = smollm2() if inputs["model"] == "smollm2" else gpt2(inputs["model"])
    prompts, new = inputs["prompts"], inputs["tokens"]
    if not new:
        return lambda: model(prompts, logits_to_keep=1).logits[:, -1]
    how = GenerationConfig(do_sample=False, use_cache=True, max_new_tokens=new, pad_token_id=0)
    given = {"attention_mask": torch.ones_like(prompts), "generation_config": how}
    return lambda: model.generate(prompts, **given)[:, prompts.shape[1] :]


@functools.cache
def smollm2() -> Any:
    """LlamaForCausalLM with the weights of `data.smollm2()`, dequantised by the package gguf."""
    from gguf import GGUFReader, dequantize  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    heads = {"attn_q": 9, "attn_k": 3}
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    state = {}
    for tensor in GGUFReader(data.smollm2()).tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        part = tensor.name.split(".")[-2]
        state[_name(tensor.name)] = _rope_halves(weight, heads[part]) if part in heads else weight
    model = LlamaForCausalLM(config).eval()
    absent = model.load_state_dict(state, strict=False)
    assert absent.missing_keys == ["lm_head.weight"] and not absent.unexpected_keys, absent
    return model


def _name(name: str) -> str:
    """What transformers calls a tensor of a GGUF file."""
    words = name.split(".")
    if words[0] == "blk":
        return f"model.layers.{words[1]}.{_BLOCK[words[2]]}.weight"
    return f"{_ENDS[words[0]]}.weight"


def _rope_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection whose pairs of rotation lie side by side, put into halves of each head."""
    pairs = weight.view(heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


@functools.cache
def gpt2(size: str) -> Any:
    """GPT2LMHeadModel, "gpt2" of 124 million weights or "tiny"; random but always the same."""
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415

    with torch.random.fork_rng():
        torch.manual_seed(_GPT2_SEED)
        config = GPT2Config(bos_token_id=None, eos_token_id=None, **_GPT2_SIZES[size])
        return GPT2LMHeadModel(config).eval()


def as_fastgen(size: str) -> Transformer:
    """The same GPT-2 as a model of fastgen."""
    with tempfile.TemporaryDirectory(prefix="fastgen-gpt2-") as directory:
        gpt2(size).save_pretrained(directory)
        return Transformer.from_pretrained(directory)

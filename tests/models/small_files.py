"""Small models in the files of other libraries, written by those libraries' own packages."""

from pathlib import Path

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
TOKENS = ["<end>", "<user>", *LETTERS, "Ġ", "Ċ", "Ġt", "he", "Ġthe", ".", "!"]
MERGES = ["Ġ t", "h e", "Ġt he"]
TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}"


def small_llama(**options):
    """A LlamaForCausalLM with weights large enough that every part of it matters."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "initializer_range": 0.2, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | options)))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model.eval()


def write_gguf(
    path: Path, model, kind: str = "Q4_1", tokenizer: bool = True, extra: dict | None = None, **metadata
) -> None:
    """Write a Llama as llama.cpp's converter does: rows of q and k in pairs, `kind` for all matrices.

    The model's matrices are replaced by what the file holds of them. A Qwen2 keeps its rows in their order.
    """
    c = model.config
    writer = gguf.GGUFWriter(path, c.model_type)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{c.model_type}.{key}", value)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    if tokenizer:
        _write_tokenizer(writer)
    for name, parameter in model.named_parameters():
        _write_tensor(writer, model, name, parameter, gguf.GGMLQuantizationType[kind])
    _finish(writer)


def write_gpt2(path: Path, model) -> None:
    """Write a GPT-2: queries, keys and values in one matrix, all matrices (out, in), float32."""
    writer = gguf.GGUFWriter(path, "gpt2")
    c = model.config
    writer.add_block_count(c.n_layer)
    writer.add_context_length(c.n_positions)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(4 * c.n_embd)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(c.layer_norm_epsilon)
    names = {
        "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.h.": "blk.",
        "transformer.ln_f": "output_norm", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        turned = values.T if ".c_" in name and values.ndim == 2 else values
        writer.add_tensor(_name(name, names), np.ascontiguousarray(turned))
    _finish(writer)


def _finish(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)


def _write_tensor(writer, model, name, parameter, kind) -> None:
    if name == "lm_head.weight" and model.config.tie_word_embeddings:
        return
    values = parameter.detach().numpy()
    if values.ndim == 1:
        writer.add_tensor(_name(name), values)
        return
    packed = gguf.quants.quantize(values, kind)
    parameter.data = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()).view(parameter.shape)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    count = next((heads[part] for part in heads if part in name), None)
    if model.config.model_type != "llama":
        count = None
    writer.add_tensor(_name(name), packed if count is None else _in_pairs(packed, count), raw_dtype=kind)


def _in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + D/2 of each head side by side."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


_LLAMA_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers.": "blk.", "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _name(name: str, names: dict[str, str] = _LLAMA_NAMES) -> str:
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name

"""A transformer in a directory as transformers writes it: gpt2, llama, mistral and qwen2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from fastgen import files
from fastgen.generation.tokenizer import TOKENIZER_FILE, Tokenizer
from fastgen.models.pretrained import PICKLES, Source, Stored, number, whole
from fastgen.models.transformer_rope import scaling

_KEPT_AS = {"F32": "float32", "F16": "float32", "BF16": "bfloat16"}
_LLAMA = {
    "input_layernorm": "attention_norm", "self_attn.q_proj": "q", "self_attn.k_proj": "k",
    "self_attn.v_proj": "v", "self_attn.o_proj": "o", "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
}  # fmt: skip
_GPT2 = {
    "ln_1": "attention_norm",
    "attn.c_proj": "o",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}
_SOURCES = {
    "model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "final_norm.weight",
    "lm_head.weight": "head.weight", "wte.weight": "embedding.weight", "wpe.weight": "positions",
    "ln_f.weight": "final_norm.weight", "ln_f.bias": "final_norm.bias",
}  # fmt: skip


def read_directory(path: Path) -> Source:
    """Say what model a directory with config.json and safetensors holds.

    Raises:
        FileNotFoundError, ValueError: as `Transformer.from_pretrained`.
    """
    given = files.read_json(path / "config.json")
    _check_family(path, given)
    source = source_of(path, given, _read_tensors(path))
    if (path / TOKENIZER_FILE).exists():
        source.tokenizer = _tokenizer(path, given)
    return source


def source_of(path: Path, given: dict[str, Any], found: dict[str, Stored]) -> Source:
    """Say what model a configuration of transformers and its tensors are; `path` names it in messages.

    Raises:
        ValueError: it is of a family that fastgen does not know, or lacks something.
    """
    family = _check_family(path, given)
    config = _FAMILIES[family](path / "config.json", given)
    tensors = _gpt2_tensors(found) if family == "gpt2" else _llama_tensors(found)
    if config["layers"] * 8 > len(tensors):
        raise ValueError(f"{path} claims {config['layers']} layers, but has {len(tensors)} tensors")
    if config["tied"]:
        tensors.pop("head.weight", None)
    config["tied"] = "head.weight" not in tensors
    config["biases"] = [
        p for p in ("q", "k", "v", "o", "gate", "up", "down") if f"layers.0.{p}.bias" in tensors
    ]
    return Source(path, config, tensors)


def _check_family(path: Path, given: dict[str, Any]) -> str:
    family = given.get("model_type")
    if family is None and "model" in given:
        raise ValueError(f"{path} holds a model that fastgen stored; read it with fastgen.models.load")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ValueError(
            f"{path} holds a model of the family {family!r}, wanted one of {', '.join(_FAMILIES)}"
        )
    return str(family)


def _llama(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    if given.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: 'hidden_act' is {given['hidden_act']!r}, wanted 'silu'")
    heads, hidden = whole(path, given, "num_attention_heads"), whole(path, given, "hidden_size")
    size, context = (
        whole(path, given, "head_dim", hidden // heads),
        whole(path, given, "max_position_embeddings"),
    )
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: the rope scaling is {rope!r}, wanted an object")
    if number(path, rope | given, "partial_rotary_factor", 1.0) != 1:
        raise ValueError(f"{path} turns a part of each head only, which fastgen does not know")
    theta = number(path, given | rope, "rope_theta", 10000.0)
    config = {
        "vocabulary": whole(path, given, "vocab_size"),
        "layout": "llama",
        "layers": whole(path, given, "num_hidden_layers"),
        "heads": heads,
        "hidden": hidden,
        "mlp": whole(path, given, "intermediate_size"),
        "kv_heads": whole(path, given, "num_key_value_heads", heads),
        "head_size": size,
        "context": context,
        "tied": bool(given.get("tie_word_embeddings", False)),
        "eps": number(path, given, "rms_norm_eps", 1e-6),
        "rope_theta": theta,
    }
    return config | scaling(rope, size, theta, context)


def _mistral(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    window = given.get("sliding_window")
    config = _llama(path, given)
    return config if window is None else config | {"window": whole(path, given, "sliding_window")}


def _qwen2(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    if given.get("use_sliding_window"):
        raise ValueError(f"{path} has windows in a part of its layers, which fastgen does not know")
    return _llama(path, given)


def _gpt2(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    if given.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ValueError(
            f"{path}: 'activation_function' is {given['activation_function']!r}, wanted 'gelu_new'"
        )
    if given.get("scale_attn_by_inverse_layer_idx") or not given.get("scale_attn_weights", True):
        raise ValueError(f"{path} scales attention in a way that fastgen does not know")
    hidden = whole(path, given, "n_embd")
    return {
        "vocabulary": whole(path, given, "vocab_size"),
        "layout": "gpt2",
        "layers": whole(path, given, "n_layer"),
        "heads": whole(path, given, "n_head"),
        "hidden": hidden,
        "mlp": whole(path, given, "n_inner", 4 * hidden),
        "context": whole(path, given, "n_positions"),
        "tied": bool(given.get("tie_word_embeddings", True)),
        "eps": number(path, given, "layer_norm_epsilon", 1e-5),
    }


_FAMILIES: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama, "mistral": _mistral, "qwen2": _qwen2, "gpt2": _gpt2,
}  # fmt: skip


def _llama_tensors(found: dict[str, Stored]) -> dict[str, Stored]:
    tensors = {}
    for name, stored in found.items():
        if name.startswith("model.layers."):
            layer, _, rest = name.removeprefix("model.layers.").partition(".")
            part, _, kind = rest.rpartition(".")
            if part == "self_attn.rotary_emb":
                continue  # frequencies that old files carry
            tensors[f"layers.{layer}.{_LLAMA.get(part, part)}.{kind}"] = stored
        else:
            tensors[_SOURCES.get(name, name)] = stored
    return tensors


def _gpt2_tensors(found: dict[str, Stored]) -> dict[str, Stored]:
    """Matrices lie (in, out); queries, keys and values lie side by side in one."""
    tensors = {}
    for full, stored in found.items():
        name = full.removeprefix("transformer.")
        if not name.startswith("h."):
            tensors[_SOURCES.get(name, name)] = stored
            continue
        layer, _, rest = name.removeprefix("h.").partition(".")
        part, _, kind = rest.rpartition(".")
        if kind == "masked_bias" or part == "attn":
            continue  # masks that old files carry
        if part == "attn.c_attn":
            for i, piece in enumerate("qkv"):
                tensors[f"layers.{layer}.{piece}.{kind}"] = _turned(stored, third=i)
        else:
            tensors[f"layers.{layer}.{_GPT2.get(part, part)}.{kind}"] = _turned(stored)
    return tensors


def _turned(stored: Stored, third: int | None = None) -> Stored:
    """The transposed matrix, or one of three parts of its rows; a bias is not transposed."""
    shape = stored.shape[::-1]
    if third is None:
        return Stored(shape, stored.format, lambda: _transposed(stored.values()))
    size = shape[0] // 3
    return Stored(
        (size, *shape[1:]),
        stored.format,
        lambda: _transposed(stored.values())[third * size : (third + 1) * size],
    )


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.mT if tensor.dim() == 2 else tensor


def _read_tensors(path: Path) -> dict[str, Stored]:
    """All tensors of model.safetensors, or of the shards that its index names; mapped, not read."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = files.read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{index} has no 'weight_map' of file names")
        shards = sorted(set(names.values()))
        if any("/" in name or "\\" in name or not name.endswith(".safetensors") for name in shards):
            raise ValueError(f"{index} names a file that is not a safetensors file beside it")
    else:
        shards = ["model.safetensors"]
        if not (path / shards[0]).exists() and any(p.suffix in PICKLES for p in path.iterdir()):
            raise ValueError(
                f"{path} holds a pickle, which can run anything when read; wanted model.safetensors"
            )
    found: dict[str, Stored] = {}
    for shard in shards:
        for name, stored in _read_shard(path / shard).items():
            if name in found:
                raise ValueError(f"{path} has the tensor {name!r} in two files")
            found[name] = stored
    return found


def _read_shard(path: Path) -> dict[str, Stored]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        file = safetensors.safe_open(path, "pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from None
    found = {}
    for name, part in slices.items():
        kind = part.get_dtype()
        if kind in _KEPT_AS:
            found[name] = Stored(tuple(part.get_shape()), _KEPT_AS[kind], partial(_values, file, name))
    return found


def _values(file: Any, name: str) -> Tensor:
    tensor: Tensor = file.get_tensor(name)
    return tensor if tensor.dtype == torch.bfloat16 else tensor.float()


def _tokenizer(path: Path, given: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.load(path)
    generation = path / "generation_config.json"
    ends = (files.read_json(generation) if generation.exists() else {}).get("eos_token_id")
    ends = given.get("eos_token_id") if ends is None else ends
    ends = [ends] if isinstance(ends, int) else ends
    if isinstance(ends, list) and all(isinstance(token, int) for token in ends):
        tokenizer.end_tokens = tuple(ends)
    return tokenizer

"""A transformer in a GGUF file: llama (with mistral), qwen2 and gpt2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastgen.models.gguf_file import GGUFFile, GGUFTensor, read_gguf
from fastgen.models.gguf_tokenizer import gguf_tokenizer
from fastgen.models.pretrained import Source, Stored, number, whole

# As they lie in the file, or as they are kept; the K formats lose less than their own rounding in bfloat16.
_AS_THEY_ARE = {"Q4_0": "q4_0", "Q4_1": "q4_1", "Q8_0": "q8_0"}
_KEPT_AS = {"F32": "float32", "F16": "float32", "BF16": "bfloat16"}

_WHOLE = {"token_embd.weight": "embedding.weight", "output_norm.weight": "final_norm.weight"}
_LAYER = {
    "attn_norm": "attention_norm", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_norm": "mlp_norm", "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip


def read_gguf_model(path: Path) -> Source:
    """Map a GGUF file and say what model it holds.

    Raises:
        FileNotFoundError, ValueError: as `Transformer.from_pretrained`.
    """
    file = read_gguf(path)
    family = file.metadata.get("general.architecture")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ValueError(
            f"{path} holds a model of the family {family!r}, wanted one of {', '.join(_FAMILIES)}"
        )
    own = f"{family}."
    given = {k.removeprefix(own): v for k, v in file.metadata.items() if k.startswith(own)}
    if given.get("expert_count"):
        raise ValueError(f"{path} holds a mixture of experts, which fastgen does not know")
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{path} lacks the tensor 'token_embd.weight'")
    config = _common(path, given, file)
    config |= _FAMILIES[family](path, given, file, config["head_size"])
    tensors = _tensors(file, config["layers"])
    config["tied"] = "head.weight" not in tensors
    config["biases"] = [
        p for p in ("q", "k", "v", "o", "gate", "up", "down") if f"layers.0.{p}.bias" in tensors
    ]
    return Source(path, config, tensors, gguf_tokenizer(file.metadata))


def _common(path: Path, given: dict[str, Any], file: GGUFFile) -> dict[str, Any]:
    heads, hidden = whole(path, given, "attention.head_count"), whole(path, given, "embedding_length")
    return {
        "vocabulary": file.tensors["token_embd.weight"].shape[0],
        "layers": whole(path, given, "block_count"),
        "heads": heads,
        "kv_heads": whole(path, given, "attention.head_count_kv", heads),
        "hidden": hidden,
        "head_size": whole(path, given, "attention.key_length", hidden // heads or 1),
        "mlp": whole(path, given, "feed_forward_length"),
        "context": whole(path, given, "context_length"),
    }


def _llama(
    path: Path, given: dict[str, Any], file: GGUFFile, size: int, rope: str = "interleaved"
) -> dict[str, Any]:
    """Pairs of neighbours turn together: files of llama have their rows of q and k in that order."""
    if whole(path, given, "rope.dimension_count", size) != size:
        raise ValueError(f"{path} turns a part of each head only, which fastgen does not know")
    config: dict[str, Any] = {
        "layout": "llama",
        "rope": rope,
        "eps": number(path, given, "attention.layer_norm_rms_epsilon"),
        "rope_theta": number(path, given, "rope.freq_base", 10000.0),
    }
    kind = given.get("rope.scaling.type", "none")
    if kind == "linear":
        config["rope_factors"] = [number(path, given, "rope.scaling.factor")] * (size // 2)
    elif kind != "none":
        raise ValueError(f"{path} scales rotary positions by {kind!r}, wanted none or linear")
    if "rope_freqs.weight" in file.tensors:
        config["rope_factors"] = file.tensors["rope_freqs.weight"].float().flatten().tolist()
    if "attention.sliding_window" in given:
        config["window"] = whole(path, given, "attention.sliding_window")
    return config


def _qwen2(path: Path, given: dict[str, Any], file: GGUFFile, size: int) -> dict[str, Any]:
    return _llama(path, given, file, size, rope="half")


def _gpt2(path: Path, given: dict[str, Any], file: GGUFFile, size: int) -> dict[str, Any]:
    return {"layout": "gpt2", "eps": number(path, given, "attention.layer_norm_epsilon")}


_FAMILIES = {"llama": _llama, "qwen2": _qwen2, "gpt2": _gpt2}


def _tensors(file: GGUFFile, layers: int) -> dict[str, Stored]:
    """The file's tensors under the names of the model; what belongs to no part of it keeps its own."""
    names = dict(_WHOLE) | {"output.weight": "head.weight", "output_norm.bias": "final_norm.bias"}
    names["position_embd.weight"] = "positions"
    found: dict[str, Stored] = {}
    for name, tensor in file.tensors.items():
        prefix, _, rest = name.partition(".")
        if name == "rope_freqs.weight":
            continue
        if prefix != "blk":
            found[names.get(name, name)] = _stored(tensor)
            continue
        layer, _, part = rest.partition(".")
        word, _, kind = part.partition(".")
        if word == "attn_qkv":
            for piece, stored in zip("qkv", _thirds(tensor), strict=True):
                found[f"layers.{layer}.{piece}.{kind}"] = stored
        else:
            found[f"layers.{layer}.{_LAYER.get(word, word)}.{kind}"] = _stored(tensor)
    if layers * 8 > len(found):
        raise ValueError(f"{file.path} claims {layers} layers, but has {len(found)} tensors")
    return found


def _stored(tensor: GGUFTensor) -> Stored:
    if tensor.type in _AS_THEY_ARE:
        return Stored(tensor.shape, _AS_THEY_ARE[tensor.type], tensor.float, tensor.data)
    return Stored(tensor.shape, _KEPT_AS.get(tensor.type, "bfloat16"), tensor.float)


def _thirds(tensor: GGUFTensor) -> list[Stored]:
    """Queries, keys and values that lie one under the other."""
    if tensor.shape[0] % 3:
        raise ValueError(f"{tensor.name!r} has shape {tensor.shape}, wanted three equal parts")
    rows, size = tensor.shape[0] // 3, tensor.data.shape[0] // 3
    return [
        _stored(
            GGUFTensor(
                tensor.name, tensor.type, (rows, *tensor.shape[1:]), tensor.data[i * size : (i + 1) * size]
            )
        )
        for i in range(3)
    ]

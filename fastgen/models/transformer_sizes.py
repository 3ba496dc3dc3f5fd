"""What the configuration of a `fastgen.models.Transformer` may say, and what its texts may be."""

from __future__ import annotations

from typing import Any

from fastgen.models.transformer_layers import MATRICES
from fastgen.reference.packed_linear import DTYPES


def format_of(formats: dict[str, str], name: str) -> str | None:
    """The format of a matrix by its name, None where it is a parameter."""
    return formats.get(name, formats.get("*"))


def formats_of_layer(formats: dict[str, str], layer: int) -> dict[str, str]:
    """The formats of one layer's matrices under their short names."""
    names = {name: format_of(formats, f"layers.{layer}.{name}") for name in MATRICES}
    return {name: word for name, word in names.items() if word is not None}


def check_sizes(config: dict[str, Any]) -> None:
    """Raise ValueError for a size or a word that makes no sense, or two that do not fit."""
    for name in ("vocabulary", "layers", "heads", "hidden", "mlp", "kv_heads", "head_size", "context"):
        value = config[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}, wanted a positive int")
    if config["window"] is not None and config["window"] < 1:
        raise ValueError(f"window is {config['window']}, wanted at least 1, or None for all positions")
    if not 0 <= config["eps"] < float("inf"):
        raise ValueError(f"eps is {config['eps']}, wanted a finite number of at least 0")
    unknown = next((name for name in config["biases"] if name not in MATRICES), None)
    if unknown is not None:
        raise ValueError(f"biases holds {unknown!r}, wanted some of {', '.join(MATRICES)}")
    wrong = next((word for word in config["formats"].values() if word not in DTYPES), None)
    if wrong is not None:
        raise ValueError(f"formats holds {wrong!r}, wanted some of {', '.join(DTYPES)}")
    if config["heads"] % config["kv_heads"]:
        raise ValueError(f"heads is {config['heads']}, wanted a multiple of kv_heads = {config['kv_heads']}")
    if config["rope"] not in ("none", "half", "interleaved"):
        raise ValueError(f"rope is {config['rope']!r}, wanted none, half or interleaved")
    if config["rope"] != "none" and config["head_size"] % 2:
        raise ValueError(f"head_size is {config['head_size']}, wanted an even number for rotary positions")
    factors = config["rope_factors"]
    if factors is not None and len(factors) != config["head_size"] // 2:
        raise ValueError(f"rope_factors has {len(factors)} numbers, wanted {config['head_size'] // 2}")


def check_text(index: int, tokens: list[int], vocabulary: int, context: int) -> None:
    """Raise ValueError for tokens, those of a prompt before them included, that cannot be scored."""
    if not 2 <= len(tokens) <= context + 1:
        came = f"text {index}, with what stands before it, has {len(tokens)} tokens"
        raise ValueError(f"{came}, wanted 2 to {context + 1}")
    bad = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if bad is not None:
        raise ValueError(f"text {index} holds token {bad}, wanted 0 to {vocabulary - 1}")

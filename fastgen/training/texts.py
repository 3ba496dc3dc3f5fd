"""A small transformer of characters: what it is trained on, and how well it knows works it has not seen."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastgen.generation import Tokenizer
from fastgen.models import Transformer
from fastgen.training.loop import train


def transformer_of_characters(
    works: str | Iterable[str],
    *,
    layers: int = 3,
    heads: int = 2,
    hidden: int = 64,
    mlp: int = 160,
    context: int = 256,
    steps: int = 2000,
    batch_size: int = 12,
    lr: float = 4e-3,
    seed: int = 0,
    progress: bool = True,
) -> Transformer:
    """A transformer whose tokens are the characters of some works.

    Args:
        works: texts, or a single one, of more than `context` characters in all.
        layers, heads, hidden, mlp, context: as for `Transformer`.
        steps: of `batch_size` stretches of `context` characters.
        lr: learning rate of AdamW.
        seed: of the initial weights and of the order of the stretches.
        progress: show a progress bar.

    Returns:
        The model with its tokenizer, in evaluation mode.
    """
    text = "\n".join(_several(works))
    tokenizer = Tokenizer.of_characters("".join(sorted(set(text))))
    sizes: dict[str, Any] = {
        "layers": layers,
        "heads": heads,
        "hidden": hidden,
        "mlp": mlp,
        "context": context,
    }
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = Transformer(tokenizer.vocabulary, **sizes)
    model.tokenizer = tokenizer
    train(
        model,
        stretches(model, text),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.1,
        ema=0.99,
        clip_norm=1.0,
        validation=0.0,
        seed=seed,
        progress=progress,
    )
    return model.eval()


def stretches(model: Transformer, text: str) -> Tensor:
    """The tokens of a text in rows (N, context + 1) that share one token with the next; the rest is left out.

    ValueError: the text is shorter than one row.
    """
    context = model.config["context"]
    assert model.tokenizer is not None
    tokens = torch.tensor(model.tokenizer.encode(text), dtype=torch.int64)
    if len(tokens) <= context:
        raise ValueError(f"text has {len(tokens)} tokens, wanted more than context = {context}")
    return tokens.unfold(0, context + 1, context).contiguous()


def bits_per_character(model: Transformer, works: str | Iterable[str]) -> float:
    """Mean of -log2 p of the characters of works, each given those before it in its stretch of `context`.

    Characters that the model does not know are left out.
    """
    assert model.tokenizer is not None
    known = set(model.tokenizer.backend.get_vocab())
    bits, count = 0.0, 0
    for work in _several(works):
        for row in stretches(model, "".join(character for character in work if character in known)):
            bits -= float(model.log_prob(row[None])) / math.log(2)
            count += len(row) - 1
    return bits / count


def _several(works: str | Iterable[str]) -> list[str]:
    """Texts as a list; a text is one work, and not as many as it has characters."""
    return [works] if isinstance(works, str) else list(works)

"""A small transformer of characters: what it is trained on, and how well it knows works it has not seen."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen import data
from fastgen.data import Works
from fastgen.generation import Tokenizer
from fastgen.models import Transformer
from fastgen.training.loop import train

STEPS, BATCH_SIZE, LR = 2000, 12, 4e-3
TEXTS: dict[str, Callable[[], Works]] = {"shakespeare": data.shakespeare}


def transformer_of_characters(
    works: str | Iterable[str],
    *,
    layers: int = 3,
    heads: int = 2,
    hidden: int = 64,
    mlp: int = 160,
    context: int = 256,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = BATCH_SIZE,
    lr: float = LR,
    seed: int = 0,
    device: str | torch.device = "cpu",
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Transformer:
    """A transformer whose tokens are the characters of some works.

    Args:
        works: texts, or a single one, of more than `context` characters in all.
        layers, heads, hidden, mlp, context: as for `Transformer`.
        steps: of `batch_size` stretches of `context` characters, 2000 by default; or `epochs`.
        epochs: how many times to go through all stretches, instead of `steps`.
        lr: learning rate of AdamW.
        seed: of the initial weights and of the order of the stretches.
        device: where to train.
        out: directory for the state and the model; the same call goes on where a training was stopped. None
            keeps nothing.
        progress: show a progress bar.

    Returns:
        The model with its tokenizer, on the CPU and in evaluation mode.
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
        model.to(device),
        stretches(model, text),
        steps=STEPS if steps is None and epochs is None else steps,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.1,
        ema=0.99,
        clip_norm=1.0,
        validation=0.0,
        seed=seed,
        out=out,
        progress=progress,
    )
    return model.cpu().eval()


def works_of(name: str) -> Works:
    """Works to train on and to test on: a word of TEXTS, or a file, whose last tenth is tested on.

    Raises:
        ValueError: it is neither, or no text in UTF-8.
        OSError: the file cannot be read.
    """
    if name in TEXTS:
        return TEXTS[name]()
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--data is {name!r}, wanted a file of text, or one of {', '.join(TEXTS)}")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    cut = len(text) - len(text) // 10
    return Works({name: text[:cut]}, {name: text[cut:]})


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
    bits, count = 0.0, 0
    for work in _several(works):
        rows = stretches(model, known_part(model, work))
        bits -= float(model.log_prob(rows).double().sum()) / math.log(2)
        count += len(rows) * (rows.shape[1] - 1)
    return bits / count


def known_part(model: Transformer, work: str) -> str:
    """A work without the characters that the model does not know."""
    assert model.tokenizer is not None
    known = set(model.tokenizer.backend.get_vocab())
    return "".join(character for character in work if character in known)


def _several(works: str | Iterable[str]) -> list[str]:
    """Texts as a list; a text is one work, and not as many as it has characters."""
    return [works] if isinstance(works, str) else list(works)

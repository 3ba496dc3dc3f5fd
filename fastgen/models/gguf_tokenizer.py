"""The tokenizer that a GGUF file describes in its metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastgen.generation.tokenizer import Tokenizer

# How a text is cut before merging, by the name that a file gives: "digits" cuts single digits first.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    "default": _WORDS,
    "gpt-2": _WORDS,
    "smollm": _WORDS,
    "llama-bpe": _ANY_CASE + r"\p{N}{1,3}" + _REST,
    "llama3": _ANY_CASE + r"\p{N}{1,3}" + _REST,
    "qwen2": _ANY_CASE + r"\p{N}" + _REST,
}
_SINGLE_DIGITS = ("smollm",)

_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_tokenizer(metadata: dict[str, Any]) -> Tokenizer | None:
    """Build the tokenizer of a GGUF file; None if the file has none.

    Raises:
        ValueError: it is of a kind that fastgen does not know, or damaged.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        return None
    if not isinstance(kind, str) or kind not in _MODELS:
        raise ValueError(f"the tokenizer is of the kind {kind!r}, wanted one of {', '.join(_MODELS)}")
    tokens = _strings(metadata, "tokens")
    backend = _MODELS[kind](metadata, tokens)
    _add_special_tokens(backend, metadata, tokens)
    ends = [_token(metadata, name, tokens) for name in ("eos", "eot", "eom")]
    special = {
        name: tokens[i] for name, key in _SPECIAL.items() if (i := _token(metadata, key, tokens)) is not None
    }
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        backend,
        end_tokens=dict.fromkeys(i for i in ends if i is not None),
        chat_template=template if isinstance(template, str) else None,
        special=special,
    )


def _strings(metadata: dict[str, Any], name: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"the tokenizer's {name} are missing or not strings")
    return value


def _token(metadata: dict[str, Any], name: str, tokens: list[str]) -> int | None:
    """The id of the token with that role, if the file names one that exists."""
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None or value == 0xFFFFFFFF:
        return None
    if not isinstance(value, int) or not 0 <= value < len(tokens):
        raise ValueError(f"the tokenizer's {name} token is {value!r}, wanted 0 to {len(tokens) - 1}")
    return value


def _byte_level(metadata: dict[str, Any], tokens: list[str]) -> Any:
    """Merges over bytes, as GPT-2's: Radford et al. 2019."""
    from tokenizers import Regex, decoders, pre_tokenizers  # noqa: PLC0415

    name = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(name, str) or name not in _SPLITS:
        raise ValueError(f"the tokenizer cuts words as {name!r}, fastgen knows {', '.join(_SPLITS)}")
    backend = _merging(
        tokens, _pairs(tokens, _strings(metadata, "merges")), ignore_merges=name in ("llama-bpe", "llama3")
    )
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if name in _SINGLE_DIGITS else []
    parts.append(pre_tokenizers.Split(Regex(_SPLITS[name]), "isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: dict[str, Any], tokens: list[str]) -> Any:
    """Pieces of words with scores, spaces written U+2581, bytes where no piece fits: Llama 2's."""
    from tokenizers import decoders, normalizers  # noqa: PLC0415

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ValueError("the tokenizer's scores are missing or not as many as its tokens")
    unknown = _token(metadata, "unknown", tokens)
    backend = _merging(
        tokens, _merges_by_score(tokens, scores), byte_fallback=True, fuse_unk=True,
        unk_token=None if unknown is None else tokens[unknown],
    )  # fmt: skip
    space: list[Any] = [normalizers.Replace(" ", "▁")]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        space.insert(0, normalizers.Prepend("▁"))
    backend.normalizer = normalizers.Sequence(space)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


_MODELS: dict[str, Callable[[dict[str, Any], list[str]], Any]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}


def _merging(tokens: list[str], merges: list[Any], **options: Any) -> Any:
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415
    from tokenizers import models  # noqa: PLC0415

    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("the tokenizer has a token twice")
    try:
        return Backend(models.BPE(vocab=vocabulary, merges=merges, **options))
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"the tokenizer is damaged: {error}") from None


def _pairs(tokens: list[str], merges: list[str]) -> list[tuple[str, ...]]:
    """Merges as pairs of tokens; the strings are those of `tokens`, since a hundred thousand take memory."""
    own = {token: token for token in tokens}
    try:
        pairs = [tuple([own[part] for part in merge.split(" ")]) for merge in merges]
    except KeyError as error:
        raise ValueError(f"the tokenizer merges {error}, which is none of its tokens") from None
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("the tokenizer's merges are not pairs")
    return pairs


def _merges_by_score(tokens: list[str], scores: list[float]) -> list[tuple[str, ...]]:
    """All pairs of pieces that make a piece, the one with the highest score first."""
    known = {token: i for i, token in enumerate(tokens)}
    found = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, min(len(token), 64)):
            left, right = known.get(token[:cut]), known.get(token[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right))
    return [(tokens[left], tokens[right]) for _, left, right in sorted(found)]


def _add_special_tokens(backend: Any, metadata: dict[str, Any], tokens: list[str]) -> None:
    """Tokens that are found whole in a text, and the one that begins every text."""
    from tokenizers import AddedToken, processors  # noqa: PLC0415

    kinds = metadata.get("tokenizer.ggml.token_type")
    kinds = kinds if isinstance(kinds, list) else []
    for kind, add in ((_CONTROL, backend.add_special_tokens), (_USER_DEFINED, backend.add_tokens)):
        chosen = [t for t, its in zip(tokens, kinds, strict=False) if its == kind and t]
        add([AddedToken(token, normalized=False, special=kind == _CONTROL) for token in chosen])
    begin = _token(metadata, "bos", tokens)
    default = metadata.get("tokenizer.ggml.model") == "llama"
    if begin is not None and metadata.get("tokenizer.ggml.add_bos_token", default):
        word = tokens[begin]
        backend.post_processor = processors.TemplateProcessing(
            single=[word, "$A"], special_tokens=[(word, begin)]
        )

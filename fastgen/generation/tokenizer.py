"""Text to tokens and back, through the package tokenizers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen import files

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

Message = Mapping[str, Any]


class Tokenizer:
    """A tokenizer with what a model needs beside it: the tokens that end a text, and its form of a chat.

    Attributes:
        end_tokens: ids after which nothing is generated.
        chat_template: Jinja2 text of `chat`, or None.
        special: text of special tokens by name ("bos_token", ...), for the template.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        end_tokens: Iterable[int] = (),
        chat_template: str | None = None,
        special: dict[str, str] | None = None,
    ) -> None:
        self.backend = backend
        self._of_characters = _is_of_characters(backend)
        self.end_tokens = tuple(end_tokens)
        self.chat_template = chat_template
        self.special = special or {}

    @classmethod
    def of_characters(cls, characters: str) -> Tokenizer:
        """One token for each character of `characters`, in their order; a text with others is refused."""
        from tokenizers import Tokenizer as Backend  # noqa: PLC0415
        from tokenizers import decoders, models  # noqa: PLC0415

        backend = Backend(
            models.BPE(vocab={c: i for i, c in enumerate(dict.fromkeys(characters))}, merges=[])
        )
        backend.pre_tokenizer = _characters_alone()
        backend.decoder = decoders.Fuse()
        return cls(backend)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Tokenizer:
        """Read tokenizer.json, and beside it tokenizer_config.json and chat_template.jinja where they are.

        Raises:
            FileNotFoundError: there is no tokenizer.json.
            ValueError: a file is damaged.
        """
        path = Path(directory)
        backend = _backend(path / TOKENIZER_FILE)
        config = files.read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).exists() else {}
        special = {key: _text(config[key]) for key in config if key.endswith("_token") and _text(config[key])}
        template = config.get("chat_template")
        if isinstance(template, list):  # several by name
            named = {its.get("name"): its.get("template") for its in template if isinstance(its, dict)}
            template = named.get("default")
        if (path / TEMPLATE_FILE).exists():
            template = (path / TEMPLATE_FILE).read_text(encoding="utf-8")
        template = template if isinstance(template, str) else None
        ends = _end_tokens(config.get("end_tokens"), backend.token_to_id(special.get("eos_token", "")))
        return cls(backend, end_tokens=ends, chat_template=template, special=special)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write what `load` reads."""
        path = files.make_directory(directory)
        with files.replacing(path / TOKENIZER_FILE) as partial:
            self.backend.save(str(partial))
        config: dict[str, Any] = dict(self.special) | {"end_tokens": list(self.end_tokens)}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        files.write_json(path / CONFIG_FILE, config)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self.backend.get_vocab_size())

    @property
    def begin_token(self) -> int | None:
        """The token that a text begins with where nothing else is given."""
        token: int | None = self.backend.token_to_id(self.special.get("bos_token", ""))
        return token

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        """The tokens of a text; special tokens written in it are recognised.

        Args:
            text: what to encode.
            begin: put the token of the beginning in front, where the model has one.

        Raises:
            ValueError: a tokenizer of characters does not know one of the text, and has no token for that; or
                the text has half a pair of surrogates, which is no character.
        """
        if self._of_characters and not self.backend.get_added_tokens_decoder():
            return self._characters(text)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place = error.start
            raise ValueError(f"{text[place]!r} at place {place} is half a pair of surrogates") from None
        found = self.backend.encode(text, add_special_tokens=begin)
        if self._of_characters:
            seen = {i for start, end in found.offsets for i in range(start, end)}
            self._refuse_unknown(text, next((i for i in range(len(text)) if i not in seen), None))
        tokens: list[int] = found.ids
        return tokens

    def _characters(self, text: str) -> list[int]:
        """What `encode` returns of characters alone, forty times as fast."""
        known = self.backend.get_vocab()
        tokens = [known.get(character, -1) for character in text]
        self._refuse_unknown(text, tokens.index(-1) if -1 in tokens else None)
        return tokens

    def _refuse_unknown(self, text: str, place: int | None) -> None:
        if place is not None:
            count = self.vocabulary
            raise ValueError(f"the character {text[place]!r} at place {place} is none of the model's {count}")

    def special_tokens(self) -> frozenset[int]:
        """The tokens that `decode` leaves out."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token for token, its in added.items() if its.special)

    def knows(self, token: int) -> bool:
        """Whether there is such a token; a model may have more."""
        return self.backend.id_to_token(token) is not None

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special and unknown ones; bytes that are no UTF-8 become U+FFFD."""
        return str(self.backend.decode(list(tokens), skip_special_tokens=True))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat up to where the assistant speaks.

        Args:
            messages: each {"role": "system" | "user" | "assistant", "content": text}; a content may also be
                parts {"type": "text", "text": text}, which are joined.

        Raises:
            ValueError: the model has no template of a chat, the template refuses these messages, or a part of
                one is no text.
        """
        return self.encode(self.chat_text(messages), begin=False)

    def chat_text(self, messages: Sequence[Message]) -> str:
        """The text whose tokens `chat` returns."""
        from jinja2 import TemplateError  # noqa: PLC0415  an optional package
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

        if self.chat_template is None:
            raise ValueError("this model has no template of a chat; give a text instead of messages")
        plain = [_plain(i, message) for i, message in enumerate(messages)]
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, **options
        )
        try:
            template = environment.from_string(self.chat_template)
            return template.render(messages=plain, add_generation_prompt=True, **self.special)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the template of a chat refuses these messages: {error}") from None


def _backend(path: Path) -> tokenizers.Tokenizer:
    try:
        from tokenizers import Tokenizer as Backend  # noqa: PLC0415  an optional package
    except ImportError:
        raise ModuleNotFoundError("text needs the package tokenizers: pip install 'fastgen[text]'") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"{path} is not a tokenizer: {error}") from None


def _is_of_characters(backend: tokenizers.Tokenizer) -> bool:
    """Whether a text is cut into characters, each a token, with none for those that are not known."""
    model, cuts = backend.model, backend.pre_tokenizer
    return (
        type(model).__name__ == "BPE"
        and model.unk_token is None
        and not model.byte_fallback
        and backend.normalizer is None
        and backend.post_processor is None
        and cuts is not None
        and json.loads(cuts.__getstate__()) == json.loads(_characters_alone().__getstate__())
    )


def _characters_alone() -> Any:
    """What cuts a text into its characters."""
    from tokenizers import Regex, pre_tokenizers  # noqa: PLC0415  an optional package

    return pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")


def _end_tokens(given: Any, eos: int | None) -> list[int]:
    if isinstance(given, list) and all(isinstance(token, int) for token in given):
        return given
    return [] if eos is None else [eos]


def _text(value: Any) -> str:
    """A special token as a config may write it: its text, or an object that holds it."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _plain(index: int, message: Message) -> dict[str, Any]:
    """A message whose content is one text, as templates take it."""
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return dict(message)
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            came = repr(part) if kind in (None, "text") else f"of type {kind!r}"
            raise ValueError(
                f"message {index} has a part {came}, wanted {{'type': 'text', 'text': ...}} alone"
            )
    return {**message, "content": "".join(part["text"] for part in content)}


def _refuse(message: str) -> None:
    from jinja2 import TemplateError  # noqa: PLC0415

    raise TemplateError(message)

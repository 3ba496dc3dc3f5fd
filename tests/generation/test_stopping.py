"""Text as it comes: no character in two pieces, stop strings found wherever tokens cut them."""

import json
import random

import pytest

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from fastgen.generation import Tokenizer
from fastgen.generation.stopping import TextStream

TEXTS = [
    "plain words",
    "naïve café",
    "日本語のテキスト",
    "👩‍👩‍👧 family 🙂",
    "a\n\n\tb",
    "Ωμέγα и кириллица",
    "� is a character",
]


def bytes_tokenizer():
    """Every byte is a token, as in the worst text of a byte-level vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def pieces_of(text, stop=()):
    tokenizer = bytes_tokenizer()
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text):
        pieces.append(stream.push(token))
        assert "".join(pieces) == stream.text
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text
    return pieces, stream


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_the_text_and_characters_stay_whole(text):
    pieces, stream = pieces_of(text)
    assert "".join(pieces) == text and not stream.stopped
    if "�" not in text:
        assert all("�" not in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte():
    pieces, _ = pieces_of("a語b")
    assert pieces == ["a", "", "", "語", "b", ""]


def test_bytes_that_never_become_a_character_come_at_the_end():
    tokenizer = bytes_tokenizer()
    stream = TextStream(tokenizer)
    tokens = tokenizer.encode("ok語")[:-1]
    pieces = [stream.push(token) for token in tokens]
    assert pieces == ["o", "k", "", ""]
    assert stream.finish() == "�" and stream.text == tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["four"], "one two three"),
        ("ababac", ["abac"], "ab"),
        ("aaab", ["aab"], "a"),
        ("end", ["end"], ""),
        ("日本語", ["本"], "日"),
        ("xyz", ["yzw"], "xyz"),
        ("abcd", ["bcd", "bc"], "a"),
    ],
)
def test_a_stop_string_ends_the_text_before_it(text, stop, wanted):
    pieces, stream = pieces_of(text, stop)
    assert stream.text == wanted and stream.stopped == any(s in text for s in stop)
    assert "".join(pieces) == wanted


def test_what_may_begin_a_stop_string_is_held_back_and_no_more():
    pieces, _ = pieces_of("ab<|x", ["<|end|>"])
    assert pieces == ["a", "b", "", "", "<|x", ""]


def ids_of_bytes(tokenizer, text):
    """Tokens of the bytes of a byte-level alphabet, whatever they say."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [tokenizer.backend.token_to_id(letters[byte]) for byte in text]


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_make_the_text_that_they_make_at_once(seed):
    tokenizer, rng = bytes_tokenizer(), random.Random(seed)
    some = [b"\xff", b"\xe3\x81", b"\x81", b"\xf0\x9f\x99", "語".encode(), "🙂".encode(), "�".encode(), b"a"]
    for _ in range(300):
        text = b"".join(rng.choices(some[: rng.randint(1, len(some))], k=rng.randint(1, 60)))
        stream = TextStream(tokenizer)
        tokens = ids_of_bytes(tokenizer, text)
        pieces = [stream.push(token) for token in tokens]
        assert (
            "".join(pieces) + stream.finish() == tokenizer.decode(tokens) == text.decode("utf-8", "replace")
        )


@pytest.mark.parametrize("text", [b"\xff", b"\x81", "�".encode(), b"special"], ids=repr)
def test_a_token_costs_the_same_however_many_came_before(text):
    """Characters that never come, and tokens without text, are not decoded again and again."""
    tokenizer = bytes_tokenizer()
    tokenizer.backend.add_special_tokens(["<special>"])
    decoded = []
    decode = tokenizer.decode
    tokenizer.decode = lambda tokens: decoded.append(len(tokens)) or decode(tokens)
    stream = TextStream(tokenizer)
    tokens = [256] if text == b"special" else ids_of_bytes(tokenizer, text)
    for token in tokens * (3000 // len(tokens)):
        stream.push(token)
    assert sum(decoded) < 200 * 3000


def test_a_copy_goes_on_by_itself():
    tokenizer = bytes_tokenizer()
    stream = TextStream(tokenizer, ["zz"])
    first, *rest = tokenizer.encode("語z")
    stream.push(first)
    other = stream.copy()
    for token in rest:
        other.push(token)
    assert (stream.text, other.text, other.stopped) == ("", "語", False)
    other.push(tokenizer.encode("z")[0])
    assert other.stopped and not stream.stopped


def test_a_tokenizer_of_characters_knows_its_characters(tmp_path):
    tokenizer = Tokenizer.of_characters("abc \nda")
    assert tokenizer.vocabulary == 6
    assert tokenizer.encode("cab\n") == [2, 0, 1, 4]
    assert tokenizer.decode([2, 0, 3, 3, 1, 4, 5]) == "ca  b\nd"
    tokenizer.save(tmp_path)
    for one in (tokenizer, Tokenizer.load(tmp_path)):
        for text, place in (("?", 0), ("ab?c?", 2), ("ab\t", 2), ("a🙂b", 1)):
            with pytest.raises(ValueError, match=rf"character .* at place {place} is none of the model's 6"):
                one.encode(text)


def test_half_a_pair_of_surrogates_is_named():
    with pytest.raises(ValueError, match=r"'\\ud83d' at place 1 is half a pair of surrogates"):
        bytes_tokenizer().encode("a\ud83d!")


def test_special_tokens_among_characters_are_found_and_unknown_ones_still_refused():
    tokenizer = Tokenizer.of_characters("abc")
    tokenizer.backend.add_special_tokens(["<end>"])
    assert tokenizer.encode("ab<end>c") == [0, 1, 3, 2]
    with pytest.raises(ValueError, match="character '>' at place 7 is none of the model's 4"):
        tokenizer.encode("ab<end>>c")


def test_a_tokenizer_is_stored_whole(tmp_path):
    tokenizer = Tokenizer.of_characters("abc")
    tokenizer.end_tokens = (2,)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.special = {"bos_token": "a"}
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.end_tokens == (2,) and again.begin_token == 0
    assert again.chat([{"role": "user", "content": "bc"}]) == [0, 1, 2]


def test_of_several_templates_the_default_one_is_taken_and_may_leave_a_loop(tmp_path):
    Tokenizer.of_characters("abc").save(tmp_path)
    default = (
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    )
    several = [{"name": "tool_use", "template": "c"}, {"name": "default", "template": default}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    messages = [{"role": "user", "content": letter} for letter in "ab"]
    assert Tokenizer.load(tmp_path).chat(messages) == [0]


def test_a_template_can_refuse_and_cannot_reach_out():
    tokenizer = Tokenizer.of_characters("abc")
    with pytest.raises(ValueError, match="no template of a chat; give a text instead"):
        tokenizer.chat([{"role": "user", "content": "a"}])
    tokenizer.chat_template = "{{ raise_exception('only users') }}"
    with pytest.raises(ValueError, match="refuses these messages: only users"):
        tokenizer.chat([{"role": "system", "content": "a"}])
    tokenizer.chat_template = "{{ messages[0]['content'] + 'a' }}"
    with pytest.raises(ValueError, match="template of a chat refuses these messages: unsupported operand"):
        tokenizer.chat([{"role": "user", "content": 5}])
    tokenizer.chat_template = "{{ messages.__class__.__mro__ }}"
    with pytest.raises(ValueError, match="refuses these messages"):
        tokenizer.chat([{"role": "user", "content": "a"}])


def test_a_damaged_tokenizer_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer.json is not a tokenizer"):
        Tokenizer.load(tmp_path)

"""GGUF files: the same model as transformers', mapped and not copied; damaged files are refused."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_files import TOKENS, gguf, small_llama, transformers, write_gguf, write_gpt2

from fastgen.models import Transformer
from fastgen.models.gguf_file import TYPES, read_gguf
from fastgen.models.gguf_tokenizer import gguf_tokenizer

KEPT = {
    "F32": "float32",
    "F16": "float32",
    "BF16": "bfloat16",
    "Q4_0": "q4_0",
    "Q4_1": "q4_1",
    "Q8_0": "q8_0",
}


def tokens_of(shape):
    return torch.randint(0, len(TOKENS), shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [*KEPT, "Q5_0", "Q5_1"])
@torch.no_grad()
def test_a_file_is_the_model_that_transformers_has_with_its_weights(kind, tmp_path):
    theirs = small_llama()
    write_gguf(tmp_path / "model.gguf", theirs, kind)
    ours = Transformer.from_pretrained(tmp_path / "model.gguf")
    assert ours.config["formats"] == {"*": KEPT.get(kind, "bfloat16")}
    tolerance = 2e-3 if kind in ("Q4_0", "Q4_1", "Q8_0") else 1e-4  # there x is rounded, too
    if kind in ("Q5_0", "Q5_1"):
        tolerance = 0.1
    tokens = tokens_of((2, 70))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_a_gpt2_is_the_model_that_transformers_has(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=41, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in theirs.named_parameters():
        if "bias" in name or "ln_" in name:
            torch.nn.init.normal_(parameter, mean=float("bias" not in name), std=0.2)
    write_gpt2(tmp_path / "model.gguf", theirs)
    ours = Transformer.from_pretrained(tmp_path / "model.gguf")
    assert ours.tokenizer is None and ours.config["tied"]
    torch.testing.assert_close(
        ours(tokens_of((2, 70))), theirs(tokens_of((2, 70))).logits, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_a_qwen2_is_the_model_that_transformers_has(tmp_path):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=41, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    for name, parameter in theirs.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("bias" not in name), std=0.2)
    write_gguf(tmp_path / "model.gguf", theirs, "F32", tokenizer=False)
    ours = Transformer.from_pretrained(tmp_path / "model.gguf")
    assert ours.config["biases"] == ["q", "k", "v"] and not ours.config["tied"]
    torch.testing.assert_close(
        ours(tokens_of((2, 70))), theirs(tokens_of((2, 70))).logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("scaling", ["linear", "llama3"])
@torch.no_grad()
def test_scalings_of_rotary_positions_are_read(scaling, tmp_path):
    rope = {"rope_type": scaling, "rope_theta": 500.0, "factor": 8.0}
    if scaling == "linear":
        theirs = small_llama(rope_parameters=rope)
        given = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
        write_gguf(tmp_path / "model.gguf", theirs, "F32", **given)
    else:
        long = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
        theirs = small_llama(rope_parameters=rope | long)
        plain = 500.0 ** -(torch.arange(0, 16, 2) / 16)
        factors = (plain / theirs.model.rotary_emb.inv_freq).numpy()
        write_gguf(tmp_path / "model.gguf", theirs, "F32", extra={"rope_freqs.weight": factors})
    ours = Transformer.from_pretrained(tmp_path / "model.gguf")
    torch.testing.assert_close(
        ours(tokens_of((1, 200))), theirs(tokens_of((1, 200))).logits, rtol=1e-3, atol=1e-3
    )


def test_pieces_with_scores_are_merged_as_sentencepiece_does():
    """Merges follow from scores; what no piece covers comes as bytes; the first space is put there."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    words = ["▁", "h", "e", "l", "o", "w", "he", "ll", "hell", "hello", "▁hello", "▁w", "▁wo"]
    scores = [0.0] * 259 + [-100.0] * 6 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]
    metadata = {
        "model": "llama", "tokens": pieces + words, "scores": scores,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    }  # fmt: skip
    ours = gguf_tokenizer({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "w"), ("▁w", "o")]
    theirs = transformers.LlamaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces + words)}, merges=merges, add_bos_token=True
    )
    for text in ("hello", "hello woé", "wo\nhello", "语 hell"):
        assert ours.encode(text) == theirs(text).input_ids
    # The space in front is put before spaces, too, as sentencepiece does it.
    words = [ours.backend.id_to_token(token) for token in ours.encode("  hello\n")]
    assert words == ["<s>", "▁", "▁", "▁hello", "<0x0A>"]
    assert ours.decode(ours.encode("hello woé")) == "hello woé"
    assert ours.begin_token == 1 and ours.end_tokens == (2,)


def test_a_tokenizer_that_is_not_known_or_damaged_is_refused():
    words = {"tokens": ["a", "b", "ab"], "merges": ["a b"], "model": "gpt2"}
    for changed, message in (
        ({"model": "bert"}, "of the kind 'bert', wanted one of gpt2, llama"),
        ({"model": ["gpt2"]}, r"of the kind \['gpt2'\], wanted"),
        ({"pre": [1]}, r"cuts words as \[1\], fastgen knows"),
        ({"pre": "unheard-of"}, "cuts words as 'unheard-of', fastgen knows"),
        ({"merges": ["a c"]}, "merges 'c', which is none of its tokens"),
        ({"merges": ["a b a"]}, "merges are not pairs"),
        ({"merges": ["b a"]}, "damaged"),
        ({"merges": 3}, "merges are missing or not strings"),
        ({"tokens": ["a", "b", "a"]}, "has a token twice"),
        ({"eos_token_id": 3}, "eos token is 3, wanted 0 to 2"),
    ):
        given = {f"tokenizer.ggml.{key}": value for key, value in (words | changed).items()}
        with pytest.raises(ValueError, match=message):
            gguf_tokenizer(given)
    assert gguf_tokenizer({}) is None


def test_its_sizes_are_those_of_the_package_gguf():
    for number, (name, block, width) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, width))


def test_everything_that_the_package_reads_is_read(tmp_path):
    write_gguf(tmp_path / "model.gguf", small_llama())
    theirs, ours = gguf.GGUFReader(tmp_path / "model.gguf"), read_gguf(tmp_path / "model.gguf")
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == fields
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        assert ours.tensors[tensor.name].data.numpy().tobytes() == tensor.data.tobytes()


def test_its_matrices_are_mapped(tmp_path):
    write_gguf(tmp_path / "model.gguf", small_llama())
    model = Transformer.from_pretrained(tmp_path / "model.gguf")
    for matrix in (model.embedding, model.layers[1].down):
        start, end = _mapping_of(matrix.data.data_ptr())
        assert matrix.data.data_ptr() + matrix.data.numel() <= end and start > 0


def _mapping_of(address):
    """Where the mapping of model.gguf that holds this address begins and ends."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith("model.gguf"), line
            return start, end
    raise AssertionError("the address is in no mapping")


def test_text_and_chat_come_from_its_tokenizer(tmp_path):
    write_gguf(tmp_path / "model.gguf", small_llama())
    model = Transformer.from_pretrained(tmp_path / "model.gguf")
    words = [TOKENS[i] for i in model.tokenizer.encode("the the<end>ha!")]
    assert words == ["t", "he", "Ġthe", "<end>", "h", "a", "!"]
    assert model.tokenizer.decode(model.tokenizer.encode("the the<end>ha!\n")) == "the theha!\n"
    assert model.tokenizer.end_tokens == (0,)
    chat = model.tokenizer.chat([{"role": "user", "content": "he"}])
    assert [TOKENS[i] for i in chat] == ["<user>", "he", "<end>"]


def test_layers_and_tensors_must_agree(tmp_path):
    for name, metadata, message in (
        ("layers", {"block_count": 3}, r"lacks the tensor 'layers.2|claims"),
        ("experts", {"expert_count": 4}, "mixture of experts"),
        ("partial", {"rope.dimension_count": 8}, "turns a part of each head only"),
    ):
        model = small_llama()
        path = tmp_path / f"{name}.gguf"
        if "block_count" in metadata:
            model.config.num_hidden_layers = metadata.pop("block_count")
        write_gguf(path, model, **metadata)
        with pytest.raises(ValueError, match=message):
            Transformer.from_pretrained(path)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (10, "is not a GGUF file"),
        (40, "truncated or damaged"),
        (1000, "truncated or damaged"),
        (-1, "truncated"),
    ],
)
def test_a_truncated_file_is_refused(cut, message, tmp_path):
    write_gguf(tmp_path / "model.gguf", small_llama())
    data = (tmp_path / "model.gguf").read_bytes()
    whole = read_gguf(tmp_path / "model.gguf")
    used = max(t.data.data_ptr() + t.data.numel() for t in whole.tensors.values())
    end = used - min(t.data.data_ptr() for t in whole.tensors.values())
    assert end < len(data)
    (tmp_path / "cut.gguf").write_bytes(data[:cut] if cut > 0 else data[: len(data) - 4000])
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "cut.gguf")) + ".*" + message):
        Transformer.from_pretrained(tmp_path / "cut.gguf")


def hostile(
    *,
    magic=b"GGUF",
    version=3,
    tensors=1,
    pairs=0,
    metadata=b"",
    name=b"a",
    dims=(32,),
    kind=0,
    offset=0,
    size=128,
):
    """A file of one tensor, with what it says of itself."""
    info = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
    info += struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
    header = magic + struct.pack("<IQQ", version, tensors, pairs) + metadata + info
    return header + bytes(-len(header) % 32 + size)


def pair(key, kind, value):
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


HUGE = 2**63 - 1
TEXT = struct.pack("<Q", 1) + b"x"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"magic": b"GGML"}, "begins with b'GGML'"),
        ({"version": 1}, "version 1, wanted 2 or 3"),
        ({"version": 3 << 24}, "version"),
        ({"tensors": HUGE}, "0 dimensions"),
        ({"pairs": HUGE}, "twice"),
        ({"name": b"\xff"}, "damaged"),
        ({"dims": ()}, "0 dimensions"),
        ({"dims": (1,) * 5}, "5 dimensions"),
        ({"dims": (0,)}, "cannot be"),
        ({"dims": (HUGE, HUGE, HUGE, HUGE)}, "does not fit"),
        ({"dims": (33,)}, "does not fit"),
        ({"dims": (32,), "size": 127}, "does not fit"),
        ({"dims": (33,), "kind": 3}, "cannot be"),
        ({"kind": 4}, "type 4, which fastgen does not know"),
        ({"kind": 2**32 - 1}, "does not know"),
        ({"offset": 8}, "cannot be"),
        ({"offset": 32}, "does not fit"),
        ({"offset": 2**63}, "does not fit"),
        ({"offset": 2**64 - 32}, "does not fit"),
        ({"pairs": 1, "metadata": pair(b"k", 8, struct.pack("<Q", HUGE))}, "bytes are wanted"),
        ({"pairs": 1, "metadata": pair(b"k", 9, struct.pack("<IQ", 8, HUGE))}, "bytes are wanted"),
        ({"pairs": 1, "metadata": pair(b"k", 9, struct.pack("<IQ", 0, HUGE))}, "bytes are wanted"),
        ({"pairs": 1, "metadata": pair(b"k", 9, struct.pack("<IQ", 9, 1))}, "list of type 9"),
        ({"pairs": 1, "metadata": pair(b"k", 13, b"")}, "unknown type 13"),
        ({"pairs": 2, "metadata": 2 * pair(b"k", 8, TEXT)}, "the key 'k' twice"),
        ({"pairs": 1, "metadata": pair(b"general.alignment", 4, struct.pack("<I", 0))}, "alignment 0"),
        ({"pairs": 1, "metadata": pair(b"general.alignment", 4, struct.pack("<I", 48))}, "alignment 48"),
    ],
)
def test_what_cannot_be_is_refused(given, message, tmp_path):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(hostile())
    assert read_gguf(path).tensors["a"].shape == (32,)
    path.write_bytes(hostile(**given))
    with pytest.raises(ValueError, match=message):
        read_gguf(path)


def test_a_family_that_is_no_text_is_refused(tmp_path):
    words = struct.pack("<IQ", 8, 1) + struct.pack("<Q", 5) + b"llama"
    path = tmp_path / "hostile.gguf"
    path.write_bytes(hostile(pairs=1, metadata=pair(b"general.architecture", 9, words)))
    with pytest.raises(ValueError, match=r"family \['llama'\], wanted one of llama"):
        Transformer.from_pretrained(path)


def test_tensors_that_lie_over_each_other_are_refused(tmp_path):
    one = hostile()
    info = one[24 : 24 + 33]
    path = tmp_path / "hostile.gguf"
    header = one[:8] + struct.pack("<QQ", 2, 0) + info + info.replace(b"a", b"b", 1)
    path.write_bytes(header + bytes(-len(header) % 32 + 256))
    with pytest.raises(ValueError, match="does not fit"):
        read_gguf(path)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_damaged_files_load_or_are_refused_and_nothing_else(kind, tmp_path):
    if kind == "gguf":
        write_gguf(tmp_path / "model.gguf", small_llama(num_hidden_layers=1))
    else:
        small_llama(num_hidden_layers=1).save_pretrained(tmp_path)
    program = [sys.executable, Path(__file__).with_name("fuzz_files.py"), kind, tmp_path, "400"]
    done = subprocess.run([*map(str, program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused = int(done.stdout.split()[0])
    assert 100 < refused < 400

"""SmolLM2, a real language model: against transformers with the same weights, and in little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastgen import data
from fastgen.models import Transformer
from fastgen.models.gguf_file import read_gguf
from fastgen.testing import with_threads

TEXT = """The old lighthouse stood on a rock half a mile from the shore, and at low tide one could
walk out to it over the sand. Nobody had lived there for thirty years. The lamp was lit by a machine
now, and a man came from the town twice a year to oil it, to count the broken panes, and to write
the number down in a book that nobody else had ever opened. In the winter of 1962, when the sea
froze as far as the second buoy, he found a cat in the kitchen: thin, grey, and quite unafraid.
"Well," he said, "I did not bring anything for two," and went."""

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time there was a"]


@pytest.fixture(scope="module")
def path():
    try:
        return data.smollm2()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(path):
    return Transformer.from_pretrained(path)


@pytest.fixture(scope="module")
def theirs(path):
    """LlamaForCausalLM with the weights of the file, dequantised, and rows of q and k in its own order."""
    transformers = pytest.importorskip("transformers")
    file = read_gguf(path)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "post_attention_layernorm": "ffn_norm", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    state = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for i in range(30):
        state |= {f"model.layers.{i}.{k}.weight": f"blk.{i}.{v}.weight" for k, v in names.items()}
    values = {name: file.tensors[own].float() for name, own in state.items()}
    for name, weight in values.items():
        if "q_proj" in name or "k_proj" in name:
            values[name] = weight.view(-1, 32, 2, 576).transpose(1, 2).reshape(weight.shape)
    model.load_state_dict(values, strict=False)
    model.tie_weights()
    return model


def test_it_says_what_is_known(model):
    found = model.generate(
        [[{"role": "user", "content": "What is the capital of France? Answer in one word."}]],
        max_new_tokens=20,
        temperature=0,
    )[0]
    assert "Paris" in found.text and found.finish_reason == "end"
    assert found.tokens[-1] == 2 and "<|im_end|>" not in found.text


def test_the_same_bits_in_any_company(model):
    prompts = [TEXT[: 40 + 25 * i] for i in range(17)]
    options = {"max_new_tokens": 5, "seed": 8, "log_probs": True, "top_p": 0.9}
    whole = model.generate(prompts, **options)
    for threads, cut in ((1, {}), (2, {"pass_tokens": 16})):
        with with_threads(threads):
            for i in (0, 9, 16):
                alone = model.generate(prompts[i], sample_ids=[i], **cut, **options)[0]
                assert (alone.tokens, alone.log_probs) == (whole[i].tokens, whole[i].log_probs)


@pytest.mark.parametrize(
    "text", [TEXT, "naïve café — 日本語 🙂", "x = 10 ** 2\n\n\tif x:\n", "<|im_start|>user\n"]
)
def test_its_tokenizer_gives_the_text_back(model, text):
    tokens = model.tokenizer.encode(text)
    assert model.tokenizer.backend.decode(tokens, skip_special_tokens=False) == text


def test_digits_are_tokens_of_their_own(model):
    words = [model.tokenizer.backend.id_to_token(token) for token in model.tokenizer.encode("in  1962:\n\n3")]
    assert words == ["in", "ĠĠ", "1", "9", "6", "2", ":", "ĊĊ", "3"]


def test_its_weights_are_mapped_and_not_copied(path):
    program = f"""
import json, resource, sys
import tokenizers, torch
from fastgen.models import Transformer
Transformer(9, layers=1, heads=1, hidden=32).generate([1], max_new_tokens=2)  # what any model needs
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = Transformer.from_pretrained({str(path)!r})
model.generate("Memory is", max_new_tokens=4)
print(json.dumps(peak() - before))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < 1.3 * path.stat().st_size


@pytest.mark.slow
@torch.no_grad()
def test_logits_and_perplexity_are_those_of_transformers(path, theirs):
    model = Transformer.from_pretrained(path, format="float32")
    tokens = torch.tensor([model.tokenizer.encode(TEXT)])
    wanted, found = theirs(tokens).logits, model(tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    log_probs = wanted[0, :-1].double().log_softmax(-1).gather(-1, tokens[0, 1:, None])
    assert model.perplexity(TEXT) == pytest.approx(float((-log_probs.mean()).exp()), rel=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_greedy_texts_are_those_of_transformers(path, theirs):
    model = Transformer.from_pretrained(path, format="float32")
    found = model.generate(PROMPTS, max_new_tokens=40, temperature=0)
    for prompt, ours in zip(PROMPTS, found, strict=True):
        tokens = torch.tensor([model.tokenizer.encode(prompt)])
        wanted = theirs.generate(tokens, max_new_tokens=40, do_sample=False)[0, tokens.shape[1] :]
        assert ours.tokens == wanted.tolist()


@pytest.mark.slow
def test_packed_weights_have_the_perplexity_of_the_dequantised_ones(path, model):
    exact = Transformer.from_pretrained(path, format="float32").perplexity(TEXT)
    assert model.perplexity(TEXT) == pytest.approx(exact, rel=1e-3)
    assert Transformer.from_pretrained(path, format="bfloat16").perplexity(TEXT) == pytest.approx(
        exact, rel=5e-3
    )


@pytest.mark.slow
def test_the_tokenizer_is_the_one_that_transformers_builds(path, model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    words = " ".join(w for w in TEXT.split() if not any(c.isdigit() for c in w))  # see the test of digits
    for text in (
        words,
        "naïve café — 日本語 🙂",
        "it's\n\n  they'll  \t go",
        "<|im_start|>user\nhi<|im_end|>\n",
    ):
        assert model.tokenizer.encode(text) == theirs(text).input_ids
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert model.tokenizer.chat_text(messages) == wanted


def test_the_tokenizer_is_the_one_of_llama_cpp(path, model):
    """On source text too, whose spaces, lines and digits are cut in every way."""
    llama_cpp = pytest.importorskip("llama_cpp")
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    root = Path(__file__).parents[2]
    for text in (TEXT, *((root / name).read_text() for name in ("README.md", "setup.py", "docs/models.md"))):
        assert model.tokenizer.encode(text) == theirs.tokenize(text.encode(), add_bos=False, special=True)

"""Transformer against transformers with the same weights; training; saving; loading in every format."""

import json

import pytest
import torch

from fastgen import models
from fastgen.models import Transformer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SMALL = {"layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64, "mlp": 96, "context": 256}
ROPES = {
    "plain": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


def llama(**options):
    """A LlamaForCausalLM with weights large enough that every part of it matters."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.2, **({"num_key_value_heads": 2} | options),
    )  # fmt: skip
    return randomised(transformers.LlamaForCausalLM(config))


def gpt2(**options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2, **options
    )
    return randomised(transformers.GPT2LMHeadModel(config))


def randomised(model):
    """Norms and biases other than ones and zeros, so that forgetting one shows."""
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=float("bias" not in name), std=0.2)
    return model.eval()


def tokens_of(shape, seed=1):
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def check_same_logits(theirs, directory, tolerance=1e-4, **options):
    theirs.save_pretrained(directory)
    ours = Transformer.from_pretrained(directory, **options)
    tokens = tokens_of((2, 130))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=tolerance, atol=tolerance)
    return ours


@pytest.mark.parametrize("rope", ROPES)
def test_llama_has_the_logits_of_transformers(rope, tmp_path):
    given = None if ROPES[rope] is None else ROPES[rope] | {"rope_theta": 500.0}
    check_same_logits(llama(rope_parameters=given), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 24},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"rms_norm_eps": 0.1},
    ],
)
def test_variants_of_llama_have_the_logits_of_transformers(options, tmp_path):
    check_same_logits(llama(**options), tmp_path)


def test_qwen2_has_the_logits_of_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    ours = check_same_logits(randomised(transformers.Qwen2ForCausalLM(config)), tmp_path)
    assert ours.config["biases"] == ["q", "k", "v"]


def test_mistral_with_a_window_has_the_logits_of_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, sliding_window=20,
        attn_implementation="eager",
    )  # fmt: skip
    ours = check_same_logits(randomised(transformers.MistralForCausalLM(config)), tmp_path)
    assert ours.config["window"] == 20


def test_gpt2_has_the_logits_of_transformers(tmp_path):
    check_same_logits(gpt2(), tmp_path)


def test_a_directory_brings_its_tokenizer_and_the_tokens_that_end_a_text(tmp_path):
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate("abc^$")}, merges=[])
    )
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="^", eos_token="$")
    theirs.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    llama(eos_token_id=[1, 2]).save_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(tmp_path).tokenizer
    messages = [{"role": "user", "content": "ab"}]
    assert ours.chat_text(messages) == theirs.apply_chat_template(messages, tokenize=False) == "^ab$"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert ours.chat_text(parts) == "^ab$" and isinstance(parts[0]["content"], list)
    for part, came in (
        ({"type": "image_url", "image_url": {"url": "x"}}, "of type 'image_url'"),
        ({"type": "text"}, "{'type': 'text'}"),
        ("a", "'a'"),
    ):
        with pytest.raises(ValueError, match=f"message 1 has a part {came}, wanted .*'text'"):
            ours.chat([*messages, {"role": "user", "content": [*parts[0]["content"], part]}])
    assert ours.encode("cab") == theirs("cab").input_ids == [2, 0, 1]
    assert ours.begin_token == 3 and ours.end_tokens == (1, 2)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    assert Transformer.from_pretrained(tmp_path).tokenizer.end_tokens == (4,)  # the tokenizer's own


def test_a_model_in_shards_is_the_same_model(tmp_path):
    theirs = llama()
    theirs.save_pretrained(tmp_path, max_shard_size="50kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tokens = tokens_of((1, 9))
    with torch.no_grad():
        ours = Transformer.from_pretrained(tmp_path)
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_lose_nothing(dtype, tmp_path):
    exact = llama()
    for parameter in exact.parameters():  # not the model, whose angles would be rounded too
        parameter.data = parameter.data.to(dtype).float()
    llama().to(dtype).save_pretrained(tmp_path)
    tokens = tokens_of((1, 20))
    with torch.no_grad():
        wanted = exact(tokens).logits
        torch.testing.assert_close(
            Transformer.from_pretrained(tmp_path)(tokens), wanted, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "q8_0", "q4_1", "q4_0"])
def test_every_format_is_the_model_with_its_rounded_weights(format, tmp_path):
    llama().save_pretrained(tmp_path)
    packed = Transformer.from_pretrained(tmp_path, format=format)
    exact = Transformer.from_pretrained(tmp_path, trainable=True)
    for name, matrix in exact.named_modules():
        if isinstance(matrix, type(exact.embedding)):
            matrix.weight.data = packed.get_submodule(name).packed().unpack()
    tokens = tokens_of((1, 40))
    wanted = exact(tokens).detach()
    if format == "int8":  # rounds what is multiplied to 8 bits too, which these large weights make much of
        assert (packed(tokens) - wanted).norm() < 0.05 * wanted.norm()
    else:
        torch.testing.assert_close(packed(tokens), wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_both_ways_to_the_logits_agree(layout):
    torch.manual_seed(0)
    model = Transformer(97, layout=layout, **SMALL)
    tokens = tokens_of((3, 70))
    with torch.no_grad():
        by_op = model(tokens)
    by_network = model(tokens)
    assert by_network.requires_grad and not by_op.requires_grad
    torch.testing.assert_close(by_op, by_network.detach(), rtol=1e-4, atol=1e-4)


def test_a_later_token_changes_no_earlier_logits():
    torch.manual_seed(0)
    model = Transformer(97, **SMALL)
    tokens = tokens_of((1, 90))
    changed = tokens.clone()
    changed[0, 60] = (changed[0, 60] + 1) % 97
    with torch.no_grad():
        a, b = model(tokens), model(changed)
    assert torch.equal(a[0, :60], b[0, :60]) and not torch.equal(a[0, 60:], b[0, 60:])


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_it_learns_a_text_and_says_it_again(layout, tmp_path):
    torch.manual_seed(0)
    model = Transformer(31, layout=layout, layers=2, heads=2, hidden=32, context=64)
    row = torch.randperm(31, generator=torch.Generator().manual_seed(3))[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(row)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
    said = model.generate(row[0, :3].tolist(), max_new_tokens=28, temperature=0)[0]
    assert said.tokens == row[0, 3:].tolist()
    model.save(tmp_path)
    again = models.load(tmp_path)
    assert again.generate(row[0, :3].tolist(), max_new_tokens=28, temperature=0)[0] == said


def test_log_prob_is_the_sum_of_what_the_loss_averages():
    torch.manual_seed(0)
    model = Transformer(97, **SMALL)
    tokens = tokens_of((2, 80))
    log_prob = model.log_prob(tokens)
    assert log_prob.shape == (2,)
    torch.testing.assert_close(-log_prob.mean() / 79, model.loss(tokens).detach(), rtol=1e-5, atol=1e-5)
    assert model.perplexity(tokens[0].tolist()) == pytest.approx(float((-log_prob[0] / 79).exp()), rel=1e-5)


def test_samples_depend_on_their_ids_alone():
    torch.manual_seed(0)
    model = Transformer(97, **SMALL)
    whole = model.sample(torch.arange(7), seed=3, prompt=[5, 6], length=9)
    assert whole.shape == (7, 9) and len({tuple(row) for row in whole.tolist()}) == 7
    for first, last in ((0, 1), (2, 6)):
        part = model.sample(torch.arange(first, last), seed=3, prompt=[5, 6], length=9)
        assert torch.equal(part, whole[first:last])


def test_samples_have_a_length_and_no_number_of_new_tokens():
    with pytest.raises(TypeError, match="'max_new_tokens' is no option of sample"):
        Transformer(97, **SMALL).sample(torch.arange(2), seed=0, prompt=[5], max_new_tokens=3)


def test_a_packed_model_is_stored_as_it_is(tmp_path):
    llama().save_pretrained(tmp_path / "theirs")
    model = Transformer.from_pretrained(tmp_path / "theirs", format="int8")
    model.save(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"fastgen stored; read it with fastgen\.models\.load"):
        Transformer.from_pretrained(tmp_path / "ours")
    again = models.load(tmp_path / "ours")
    tokens = tokens_of((1, 12))
    assert again.config["formats"] == {"*": "int8"} and torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_model_in_bfloat16_runs_on_its_rounded_parameters(layout):
    torch.manual_seed(0)
    model = Transformer(97, layout=layout, **SMALL).bfloat16()
    found = model.generate([5, 6], max_new_tokens=5, log_probs=True)
    assert model.float().generate([5, 6], max_new_tokens=5, log_probs=True) == found


def test_changed_parameters_are_packed_again():
    torch.manual_seed(0)
    model = Transformer(97, **SMALL)
    tokens = tokens_of((1, 8))
    with torch.no_grad():
        before = model(tokens)
        model.layers[0].q.weight.mul_(3)
        model.final_norm.weight.mul_(2)
        after = model(tokens)
        model.final_norm.weight.data = model.final_norm.weight * 2
        later = model(tokens)
    torch.testing.assert_close(after * 2, later, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(later, model(tokens).detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


def test_bad_arguments_are_explained(tmp_path):
    with pytest.raises(ValueError, match="layout is 'bert', wanted one of llama, gpt2"):
        Transformer(10, layout="bert")
    with pytest.raises(ValueError, match="heads is 4, wanted a multiple of kv_heads = 3"):
        Transformer(10, heads=4, kv_heads=3)
    wrong = {
        "mlp": (0, "mlp is 0, wanted a positive int"),
        "window": (0, "window is 0, wanted at least 1"),
        "eps": (-1.0, "eps is -1.0, wanted a finite number"),
        "biases": (["z"], "biases holds 'z', wanted some of q, k"),
        "formats": ({"*": "q5"}, "formats holds 'q5', wanted some of float32"),
    }
    for name, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=message):
            Transformer(10, **{name: value})
    model = Transformer(10, layers=1, heads=1, hidden=8, context=16)
    with pytest.raises(ValueError, match="tokens holds 10, wanted 0 to 9"):
        model(torch.tensor([[1, 10]]))
    with pytest.raises(ValueError, match="tokens has length 17, wanted 1 to 16"):
        model(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"tokens is torch.float32 \(1, 2\), wanted an int64 tensor"):
        model(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="this model has no tokenizer; give tokens"):
        model.generate("text")


def test_files_that_are_no_model_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.gguf is missing, .*nothing is downloaded"):
        Transformer.from_pretrained(tmp_path / "nothing.gguf")
    with pytest.raises(ValueError, match=r"nothing.gguf is .*wanted Transformer.from_pretrained"):
        models.load(tmp_path / "nothing.gguf")
    with pytest.raises(ValueError, match="format is 'q5', wanted one of float32"):
        Transformer.from_pretrained(tmp_path / "nothing.gguf", format="q5")
    with pytest.raises(ValueError, match="is a pickle, which can run anything when read"):
        Transformer.from_pretrained(tmp_path / "pytorch_model.bin")
    llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"without their config.json; give its directory"):
        Transformer.from_pretrained(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds a pickle, which can run anything when read"):
        Transformer.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for family, named in (("bert", "'bert'"), (["llama"], r"\['llama'\]")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": family}))
        with pytest.raises(ValueError, match=f"family {named}, wanted one of llama, mistral, qwen2, gpt2"):
            Transformer.from_pretrained(tmp_path)


def test_a_config_that_does_not_fit_its_tensors_is_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    right = json.loads((tmp_path / "config.json").read_text())
    for changed in (
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"hidden_size": 10**9},
        {"vocab_size": 96},
        {"num_attention_heads": 0},
        {"num_attention_heads": "four"},
        {"max_position_embeddings": 2**40},
        {"rms_norm_eps": None},
        {"rope_parameters": {"rope_type": "magic"}},
        {"rope_parameters": [1]},
    ):
        (tmp_path / "config.json").write_text(json.dumps(right | changed))
        with pytest.raises(
            ValueError, match=r"config.json|does not hold|has shape|lacks|foreign|claims|rope"
        ):
            Transformer.from_pretrained(tmp_path)

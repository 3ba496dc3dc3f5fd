"""attn_implementation="fastgen" in models of transformers, small ones with random weights."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fastgen.integrations import transformers_attention  # noqa: E402

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CONFIGS = {
    "Llama": lambda: transformers.LlamaConfig(**SMALL),
    "GPT2": lambda: transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=None, pad_token_id=0
    ),
    "Gemma2 (cap and window)": lambda: transformers.Gemma2Config(
        **SMALL, sliding_window=6, attn_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
    "Mistral (window)": lambda: transformers.MistralConfig(**SMALL, sliding_window=5),
    "GptOss (sinks)": lambda: transformers.GptOssConfig(
        **SMALL, sliding_window=6, num_local_experts=2, num_experts_per_tok=1
    ),
}


def models(name):
    """The same weights with fastgen's and with eager attention."""
    transformers_attention.register()
    transformers_attention.register()
    torch.manual_seed(0)
    eager = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager").eval()
    for p in eager.parameters():
        torch.nn.init.normal_(p, std=0.2)
    ours = transformers.AutoModelForCausalLM.from_config(
        CONFIGS[name](), attn_implementation="fastgen"
    ).eval()
    ours.load_state_dict(eager.state_dict())
    assert ours.config._attn_implementation == "fastgen"
    return ours, eager


def prompts():
    """Two prompts, the second one padded on the left."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 60, (2, 11), generator=g)
    seen = torch.ones_like(ids)
    ids[1, :4], seen[1, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": seen}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("padded", [False, True])
def test_logits_are_those_of_eager_attention(name, padded):
    given = prompts() if padded else {"input_ids": prompts()["input_ids"][:1]}
    ours, eager = models(name)
    with torch.no_grad():
        came, wanted = ours(**given).logits, eager(**given).logits
    seen = given.get("attention_mask", torch.ones(1, 11)).bool()
    torch.testing.assert_close(came[seen], wanted[seen], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_gives_the_same_tokens(name):
    ours, eager = models(name)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(ours.generate(**prompts(), **options), eager.generate(**prompts(), **options))
    options["cache_implementation"] = "static"
    if name != "GptOss (sinks)":  # whose experts are not compiled without a compiler's help
        assert torch.equal(ours.generate(**prompts(), **options), eager.generate(**prompts(), **options))


def test_training_gives_the_same_gradients():
    ours, eager = models("Llama")
    ids = prompts()["input_ids"]  # without padding, whose own rows eager attention does not leave at zero
    for model in (ours, eager):
        model(ids, labels=ids).loss.backward()
    for a, b in zip(ours.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_additive_masks_and_position_biases():
    g = torch.Generator().manual_seed(2)
    q = torch.randn(2, 4, 5, 8, generator=g)
    k, v = (torch.randn(2, 2, 7, 8, generator=g) for _ in range(2))
    added, bias = torch.randn(2, 1, 5, 9, generator=g), torch.randn(1, 4, 5, 7, generator=g)
    out, weights = transformers_attention.attend(torch.nn.Module(), q, k, v, added, position_bias=bias)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=added[..., :7] + bias, enable_gqa=True
    )
    torch.testing.assert_close(out, wanted.transpose(1, 2))
    assert weights is None and out.is_contiguous()


def test_a_paged_cache_is_refused():
    x = torch.ones(1, 1, 1, 4)
    with pytest.raises(ValueError, match="cache is transformers' paged one, wanted attn_impl"):
        transformers_attention.attend(torch.nn.Module(), x, x, x, None, cache=object())

"""transformers accelerated: the same tokens, the same arguments, and its own code where fastgen has none."""

import copy

import pytest
import torch
from small_transformers import END, SIZES, generate, gpt2, llama, prompts, spread, transformers, twins
from transformers import GenerationConfig

from fastgen import accelerate

FAMILIES = {
    "gpt2": gpt2,
    "llama": llama,
    "llama biases": lambda: llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama head size": lambda: llama(head_dim=16),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, sliding_window=8, attn_implementation="eager")
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)),
}


@pytest.fixture(params=FAMILIES)
def pair(request):
    plain = spread(FAMILIES[request.param]())
    return plain, accelerate(plain)[0]


@pytest.fixture
def llamas():
    return twins()


@pytest.mark.parametrize("left_padded", [False, True])
def test_greedy_tokens_are_the_same(pair, left_padded):
    plain, fast = pair
    wanted = generate(plain, **prompts(left_padded))
    assert torch.equal(generate(fast, **prompts(left_padded)), wanted)
    assert wanted[:, 9:].unique().numel() > 4  # the texts are no mere repetition


def test_positions_left_out_inside_a_prompt(pair):
    plain, fast = pair
    given = prompts()
    given["attention_mask"][:, 5:7] = 0
    own = "which the library's window counts" if getattr(plain.config, "sliding_window", None) else False
    assert torch.equal(generate(fast, own=own, **given), generate(plain, **given))


def test_a_text_has_the_same_bits_alone_and_padded_on_the_left(llamas):
    _, fast = llamas
    given = prompts()
    asked = {"min_new_tokens": 24, "return_dict_in_generate": True, "output_logits": True}
    together = torch.stack(generate(fast, **given, **asked).logits)
    for i, seen in enumerate(given["attention_mask"].bool()):
        alone = generate(fast, input_ids=given["input_ids"][i : i + 1, seen], **asked)
        assert torch.equal(torch.stack(alone.logits)[:, 0], together[:, i])


@pytest.mark.parametrize("at_once", [1, 5, 512])
def test_prompts_in_parts_and_equal_prompts_give_the_same_tokens(llamas, monkeypatch, at_once):
    monkeypatch.setattr("fastgen.integrations._language_models._PASS", at_once)
    plain, fast = llamas
    twice = {name: torch.cat([tensor, tensor.flip(0)]) for name, tensor in prompts().items()}
    assert torch.equal(generate(fast, **twice), generate(plain, **twice))


def test_prompts_longer_than_a_page_are_copied_whole(llamas):
    plain, fast = llamas
    ids = torch.randint(8, 320, (1, 70), generator=torch.Generator().manual_seed(4)).expand(2, 70)
    assert torch.equal(generate(fast, input_ids=ids), generate(plain, input_ids=ids))


def test_texts_that_end_are_filled_up_and_the_others_go_on(llamas):
    plain, fast = llamas
    ids = torch.randint(8, 320, (16, 5), generator=torch.Generator().manual_seed(2))
    ends = {"eos_token_id": list(range(END, END + 20)), "max_new_tokens": 30, "pad_token_id": 3}
    wanted = generate(plain, input_ids=ids, **ends)
    assert 2 < (wanted[:, -1] == 3).sum() < 16  # some have ended, some have not
    assert torch.equal(generate(fast, input_ids=ids, **ends), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 10},
        {"max_length": 20, "max_new_tokens": None},
        {"suppress_tokens": [8, 9, 10, 11]},
        {"num_return_sequences": 1, "use_cache": False},
        {
            "generation_config": GenerationConfig(max_new_tokens=6, eos_token_id=END),
            "max_new_tokens": 6,
        },
    ],
    ids=lambda options: next(iter(options)),
)
def test_greedy_options_mean_the_same(llamas, options):
    plain, fast = llamas
    assert torch.equal(generate(fast, **prompts(), **options), generate(plain, **prompts(), **options))


def test_scores_and_logits_are_handed_out(llamas):
    plain, fast = llamas
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    options |= {"repetition_penalty": 1.2, "max_new_tokens": 8}
    got, wanted = (generate(model, **prompts(), **options) for model in (fast, plain))
    assert torch.equal(got.sequences, wanted.sequences)
    for name in ("scores", "logits"):
        for a, b in zip(got[name], wanted[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not torch.equal(got.scores[0], got.logits[0])


def test_a_streamer_gets_every_token(llamas):
    class Streamer:
        def __init__(self):
            self.seen, self.ended = [], False

        def put(self, tokens):
            self.seen.append(tokens.flatten().tolist())

        def end(self):
            self.ended = True

    found = []
    for model in llamas:
        streamer = Streamer()
        ids = prompts(False)["input_ids"][:1]
        generate(model, input_ids=ids, streamer=streamer)
        assert streamer.ended
        found.append(streamer.seen)
    assert found[0] == found[1] and len(found[0]) > 2


def test_beams_are_the_librarys(llamas):
    plain, fast = llamas
    assert torch.equal(generate(fast, **prompts(), num_beams=3), generate(plain, **prompts(), num_beams=3))


SAMPLED = {"do_sample": True, "max_new_tokens": 1, "num_return_sequences": 3000}


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 0},
        {"top_k": 20, "temperature": 1.7},
        {"top_k": 40, "top_p": 0.8},
        {"top_k": 0, "min_p": 0.05},
        {"top_k": 0, "typical_p": 0.7},
        {"top_k": 30, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_samples_have_the_librarys_distribution(llamas, settings):
    plain, fast = llamas
    ids = prompts(False)["input_ids"][:1]
    torch.manual_seed(3)
    drawn = generate(fast, input_ids=ids, **SAMPLED, **settings)[:, -1]
    scored = {"return_dict_in_generate": True, "output_scores": True, "do_sample": True, "max_new_tokens": 1}
    p = generate(plain, input_ids=ids, **scored, **settings).scores[0][0].double().softmax(0)
    assert bool((p[drawn] > 0).all())
    count = torch.bincount(drawn, minlength=320).double()
    often = p * len(drawn) >= 5
    expected = torch.cat([p[often], p[~often].sum()[None]]) * len(drawn)
    seen = torch.cat([count[often], count[~often].sum()[None]])
    use = expected > 0
    chi2 = ((seen - expected).square() / expected)[use].sum()
    # false-alarm rate 1e-6 a test
    scipy = pytest.importorskip("scipy.stats")
    assert float(scipy.chi2.sf(float(chi2), max(int(use.sum()) - 1, 1))) > 1e-6
    uniform = torch.full_like(expected, len(drawn) / len(expected))[use]
    wrong = ((seen[use] - uniform).square() / uniform).sum()
    assert int(use.sum()) < 3 or float(scipy.chi2.sf(float(wrong), int(use.sum()) - 1)) < 1e-6


def test_the_generator_of_torch_decides_the_samples(llamas):
    _, fast = llamas
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(generate(fast, **prompts(), do_sample=True, top_k=0))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    torch.manual_seed(5)
    copies = generate(fast, **prompts(), do_sample=True, top_k=0, num_return_sequences=3, max_new_tokens=5)
    assert len({tuple(row) for row in copies[:3].tolist()}) == 3


# What fastgen leaves to the library


def right_padded():
    given = prompts(False)
    given["attention_mask"][1, -2:] = 0
    return given


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "hidden states"),
        ({"position_ids": torch.arange(3, 12).expand(4, 9)}, "position_ids"),
        (right_padded(), "attention_mask leaves out"),
    ],
    ids=["hidden states", "positions", "right padding"],
)
def test_what_fastgen_does_not_know_runs_on_the_librarys_code(llamas, options, reason):
    plain, fast = llamas
    given = prompts(False) | options
    got, wanted = generate(fast, own=reason, **given), generate(plain, **given)
    if "return_dict_in_generate" in options:
        got, wanted = got.sequences, wanted.sequences
    assert torch.equal(got, wanted)


def test_no_prompts_at_all_fail_as_in_the_library(llamas):
    for model in llamas:
        with pytest.raises(RuntimeError, match="0 elements"):
            model.generate(torch.empty(0, 4, dtype=torch.int64), max_new_tokens=2, pad_token_id=0)


def test_a_cache_of_ones_own_runs_on_the_librarys_code(llamas):
    _, fast = llamas
    found = []
    for model in llamas:
        cache = transformers.DynamicCache(config=model.config)
        ids = prompts(False)["input_ids"]
        with torch.no_grad():
            model(ids[:, :4], past_key_values=cache)
        own = "keys and values of its own" if model is fast else False
        found.append(generate(model, own=own, input_ids=ids, past_key_values=cache))
    assert torch.equal(*found)


def test_dropout_and_hooks_run_on_the_librarys_code():
    fast, _ = accelerate(spread(gpt2()))
    generate(fast.train(), own="training mode", **prompts())
    fast.eval().transformer.h[1].register_forward_hook(lambda *_: None)
    generate(fast, own="hooks", **prompts())
    fast.double()
    fast.transformer.h[1]._forward_hooks.clear()
    generate(fast, own="float64", **prompts())


def test_hidden_states_that_were_once_asked_for_do_not_end_the_fast_path():
    """transformers leaves its capturing hooks in the layers, where they do nothing from then on."""
    model = spread(llama())
    fast, _ = accelerate(model)
    asked = {"return_dict_in_generate": True, "output_hidden_states": True}
    generate(fast, own="hidden states", **asked, **prompts())
    assert fast.model.layers[0]._forward_hooks
    wanted = generate(model, own=False, **prompts())
    assert torch.equal(generate(fast, own=False, **prompts()), wanted)
    assert torch.equal(generate(accelerate(fast_twin(fast))[0], own=False, **prompts()), wanted)


def fast_twin(fast):
    """A model of transformers with the weights and the hooks of `fast`."""
    twin = copy.deepcopy(fast)
    twin.__class__ = transformers.LlamaForCausalLM
    return twin


def test_the_report_says_what_was_done():
    _, report = accelerate(llama())
    assert [part.name for part in report.replaced] == ["LlamaForCausalLM.generate"]
    kept = {part.name: part.note for part in report.kept}
    assert "beam" in kept["LlamaForCausalLM.generate with beams"] and "LlamaForCausalLM.forward" in kept


@pytest.mark.parametrize(
    "model, reason",
    [
        (lambda: llama(hidden_act="gelu"), "'hidden_act' is 'gelu'"),
        (lambda: gpt2(activation_function="relu"), "'activation_function' is 'relu'"),
        (lambda: gpt2(scale_attn_by_inverse_layer_idx=True), "scales attention"),
        (lambda: llama().half(), "torch.float16"),
        (lambda: torch.nn.utils.parametrizations.weight_norm(llama().lm_head), "nothing to replace"),
    ],
)
def test_models_that_fastgen_does_not_know_are_refused_with_the_reason(model, reason):
    with pytest.raises(TypeError, match=reason):
        accelerate(model())


def test_an_accelerated_model_is_accelerated_already(llamas):
    with pytest.raises(TypeError, match="is accelerated already"):
        accelerate(llamas[1])

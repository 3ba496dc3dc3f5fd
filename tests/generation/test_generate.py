"""Generation: the same in any company, in any cut of the work; stopping, waiting, sharing, streaming."""

import importlib
import random

import pytest
import torch

import fastgen
from fastgen import testing
from fastgen.generation import Tokenizer, scheduler
from fastgen.models import Transformer
from fastgen.ops.transformer import PAGE
from fastgen.testing import with_threads

LETTERS = "abcdefghijklmnopqrstuvwxyz \n"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return small(request.param)


def small(layout="llama"):
    torch.manual_seed(0)
    model = Transformer(
        len(LETTERS), layout=layout, layers=2, heads=4, kv_heads=2, hidden=64, mlp=96, context=400
    )
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    model.tokenizer = Tokenizer.of_characters(LETTERS)
    return model.eval()


def prompts_of(count, seed=0, longest=150):
    rng = random.Random(seed)
    return [rng.choices(range(len(LETTERS)), k=rng.randint(1, longest)) for _ in range(count)]


def same(a, b):
    """Equal but for the place in the batch."""
    return (a.tokens, a.log_probs, a.text, a.finish_reason) == (
        b.tokens,
        b.log_probs,
        b.text,
        b.finish_reason,
    )


def test_a_sample_has_the_same_bits_in_any_company(model):
    prompts = prompts_of(17)
    options = {"max_new_tokens": 12, "seed": 4, "log_probs": True, "top_k": 20}
    whole = model.generate(prompts, **options)
    for i in (0, 3, 16):
        assert same(model.generate(prompts[i], sample_ids=[i], **options)[0], whole[i])
    order = list(range(17))[::-1]
    turned = model.generate([prompts[i] for i in order], sample_ids=order, **options)
    assert all(same(turned[16 - i], whole[i]) for i in order)
    for cut in ({"pass_tokens": 7}, {"batch_size": 1}, {"batch_size": 3, "pass_tokens": 64}):
        assert all(map(same, model.generate(prompts, **cut, **options), whole))


def test_a_sample_has_the_same_bits_with_any_number_of_threads(model):
    prompts, found = prompts_of(5), []
    for threads in (1, 2, 3):
        with with_threads(threads):
            found.append(model.generate(prompts, max_new_tokens=8, log_probs=True))
    assert found[0] == found[1] == found[2]


def test_copies_of_a_prompt_differ_and_have_ids_of_their_own(model):
    prompts = prompts_of(3)
    found = model.generate(prompts, n=4, max_new_tokens=10, seed=1)
    assert [(r.prompt, r.sample_id) for r in found] == [(i // 4, i) for i in range(12)]
    assert len({tuple(r.tokens) for r in found}) == 12
    alone = model.generate(prompts[1], sample_ids=[6], max_new_tokens=10, seed=1)[0]
    assert same(alone, found[6])
    assert model.generate(prompts, n=4, max_new_tokens=10, seed=2)[0].tokens != found[0].tokens


def test_a_row_that_leaves_disturbs_no_other(model):
    """Rows of every length leave at any time; others take their places and their pages."""
    prompts = prompts_of(12, seed=3)
    model.tokenizer.end_tokens = (3, 4)
    try:
        whole = model.generate(prompts, max_new_tokens=40, seed=2, log_probs=True, batch_size=4)
        alone = [
            model.generate(p, max_new_tokens=40, seed=2, log_probs=True, sample_ids=[i])[0]
            for i, p in enumerate(prompts)
        ]
    finally:
        model.tokenizer.end_tokens = ()
    assert len({len(r.tokens) for r in whole}) > 5 and {r.finish_reason for r in whole} >= {"end"}
    assert all(map(same, whole, alone))


def counted(monkeypatch):
    """How many tokens the network sees in each pass, as they come."""
    seen = []

    def counting(weights, cache, tokens, *rest):
        seen.append(len(tokens))
        return run(weights, cache, tokens, *rest)

    run = scheduler.run_pass
    monkeypatch.setattr(scheduler, "run_pass", counting)
    return seen


def test_what_prompts_have_in_common_is_computed_once(model, monkeypatch):
    stem = prompts_of(1, seed=9)[0][:1] + random.Random(1).choices(range(28), k=2 * PAGE + 29)
    prompts = [[*stem, i, i + 1, i + 2] for i in range(10)]
    options = {"max_new_tokens": 5, "seed": 4, "log_probs": True}
    alone = [model.generate(p, sample_ids=[i], **options)[0] for i, p in enumerate(prompts)]
    seen = counted(monkeypatch)
    together = model.generate(prompts, **options)
    assert all(map(same, together, alone))
    assert sum(seen) == len(prompts[0]) + 9 * 3 + 10 * 4


def test_copies_compute_their_prompt_once(model, monkeypatch):
    prompt = random.Random(2).choices(range(28), k=211)
    seen = counted(monkeypatch)
    model.generate(prompt, n=8, max_new_tokens=2)
    assert sum(seen) == len(prompt) + 7 + 8


def test_long_prompts_come_in_parts_between_the_tokens_of_others(model, monkeypatch):
    seen = counted(monkeypatch)
    found = model.generate([[1], [2] * 300], max_new_tokens=40, pass_tokens=32)
    assert len(found[0].tokens) == 40 and max(seen) <= 33 and sum(seen) == 1 + 39 + 300 + 39


def test_sequences_wait_while_the_cache_is_full(model):
    prompts = prompts_of(9, seed=5)
    options = {"max_new_tokens": 20, "seed": 4, "log_probs": True}
    whole = model.generate(prompts, **options)
    assert all(map(same, model.generate(prompts, cache_positions=3 * PAGE, **options), whole))
    first, needs = next((i, len(p) + 19) for i, p in enumerate(prompts) if len(p) + 19 > 2 * PAGE)
    with pytest.raises(ValueError, match=f"sample {first} may need {needs} positions, but the cache has 128"):
        model.generate(prompts, cache_positions=2 * PAGE, **options)


def test_all_pages_come_back(model, monkeypatch):
    caches = []

    class Watched(scheduler.PagedCache):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            caches.append(self)

    monkeypatch.setattr(importlib.import_module("fastgen.generation.generate"), "PagedCache", Watched)
    model.generate(prompts_of(7), n=2, max_new_tokens=9, batch_size=3)
    pieces = model.stream("some text", max_new_tokens=50)
    next(pieces)
    pieces.close()
    assert len(caches) == 2 and all(cache.free == cache.pages for cache in caches)


def test_it_ends_where_it_should(model):
    prompt = prompts_of(1)[0]
    whole = model.generate(prompt, max_new_tokens=30, seed=1)[0]
    assert whole.finish_reason == "length" and len(whole.tokens) == 30 and whole.prompt_tokens == len(prompt)
    end = whole.tokens[11]
    first = whole.tokens.index(end)
    model.tokenizer.end_tokens = (end,)
    try:
        ended = model.generate(prompt, max_new_tokens=30, seed=1)[0]
    finally:
        model.tokenizer.end_tokens = ()
    assert ended.finish_reason == "end" and ended.tokens == whole.tokens[: first + 1]
    assert ended.text == model.tokenizer.decode(whole.tokens[:first])
    stop = whole.text[10:13]
    at = whole.text.index(stop)
    stopped = model.generate(prompt, max_new_tokens=30, seed=1, stop=stop)[0]
    assert stopped.finish_reason == "stop" and stopped.text == whole.text[:at]
    assert stopped.tokens == whole.tokens[: at + 3]
    assert model.generate(prompt, max_new_tokens=30, seed=1, stop=["??", "!"])[0] == whole


def test_the_context_ends_a_sequence():
    model = small()
    prompt = [1] * 390
    found = model.generate(prompt, max_new_tokens=100)[0]
    assert len(found.tokens) == 11 and found.finish_reason == "length"
    assert len(model.generate([1] * 400, max_new_tokens=100)[0].tokens) == 1
    with pytest.raises(ValueError, match="prompt 0 has 401 tokens, wanted at most 400, the model's context"):
        model.generate([1] * 401)


def test_text_comes_in_pieces_and_at_once(model, monkeypatch):
    whole = model.generate("hello there", max_new_tokens=20, seed=3)[0]
    seen = counted(monkeypatch)
    pieces = model.stream("hello there", max_new_tokens=20, seed=3)
    first = next(pieces)
    assert len(seen) == len(first) == 1
    assert first + "".join(pieces) == whole.text
    told = {}
    found = model.generate(
        ["hello there", "ab"], n=2, max_new_tokens=20, seed=3, stop="e",
        on_text=lambda i, piece: told.__setitem__(i, told.get(i, "") + piece),
    )  # fmt: skip
    assert [told.get(i, "") for i in range(4)] == [r.text for r in found]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, wanted 0 to"),
        ({"colour": 1}, "'colour' is no option of stream; it takes max_new_tokens, seed, sample_id, stop"),
        ({"n": 2}, "'n' goes with generate, but stream gives one text; it takes max_new_tokens, seed"),
        ({"beams": 2}, "'beams' goes with generate, but stream gives one text"),
        ({"stop": ""}, "stop is '', wanted a string"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, wanted at least 1"),
        ({"pass_tokens": 0}, "pass_tokens is 0, wanted at least 1"),
        ({"draft": "luck"}, "draft is 'luck', wanted 'lookup'"),
        ({"sample_id": -1}, "sample_id is -1, wanted 0 to"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_stream_says_at_its_call_what_is_wrong(model, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.stream("hello", **options)


def test_log_probs_are_those_of_the_model(model):
    prompt = prompts_of(1)[0]
    found = model.generate(prompt, max_new_tokens=9, seed=1, log_probs=True, temperature=0.7, top_k=5)[0]
    whole = torch.tensor([prompt + found.tokens])
    wanted = model.log_prob(whole) - (model.log_prob(whole[:, : len(prompt)]) if len(prompt) > 1 else 0)
    assert sum(found.log_probs) == pytest.approx(float(wanted), abs=1e-3)
    assert model.generate(prompt, max_new_tokens=2)[0].log_probs is None


def test_settings_may_differ_from_prompt_to_prompt(model):
    prompts = prompts_of(3)
    mixed = model.generate(prompts, max_new_tokens=12, seed=1, temperature=[0, 1.0, 0.5], top_k=[0, 3, 0])
    for i, (temperature, top_k) in enumerate([(0, 0), (1.0, 3), (0.5, 0)]):
        alone = model.generate(
            prompts[i], max_new_tokens=12, seed=1, sample_ids=[i], temperature=temperature, top_k=top_k
        )
        assert same(alone[0], mixed[i])


def test_a_number_for_each_prompt_means_what_it_means_alone(model):
    prompts, options = prompts_of(4), {"max_new_tokens": 20, "seed": 3, "log_probs": True}
    each = {"temperature": [0, 1, 1, 2], "top_k": [0, 3, 9, 5], "top_p": [1, 0.7, 0.9, 0.95]}
    mixed = model.generate(prompts, **each, **options)
    for i, prompt in enumerate(prompts):
        mine = {name: values[i] for name, values in each.items()}
        assert same(model.generate(prompt, sample_ids=[i], **mine, **options)[0], mixed[i])
    tensors = {name: torch.tensor(values) for name, values in each.items()} | {"top_p": each["top_p"]}
    assert all(map(same, model.generate(prompts, **tensors, **options), mixed))


def test_a_bad_setting_of_the_last_prompt_is_found_before_the_first_pass(model):
    seen = []
    bad = {"temperature": [1.0, 1.0, -1.0]}, {"logit_bias": [None, None, {28: 1.0}]}
    for settings in bad:
        with pytest.raises(ValueError, match="wanted 0 to"):
            model.generate([[1]] * 3, batch_size=1, on_text=lambda *piece: seen.append(piece), **settings)
    assert not seen


def test_penalties_and_biases_reach_the_logits(model):
    prompt = prompts_of(1, longest=5)[0]
    options = {"max_new_tokens": 20, "seed": 1}
    found = model.generate(prompt, presence_penalty=1e5, **options)[0]
    assert len(set(found.tokens)) == 20
    few = model.generate(prompt, logit_bias={t: float("-inf") for t in range(3, 28)}, **options)[0]
    assert set(few.tokens) <= {0, 1, 2}
    mixed = model.generate([prompt, prompt], presence_penalty=[0.0, 1e5], sample_ids=[0, 0], **options)
    assert same(mixed[1], found) and same(mixed[0], model.generate(prompt, **options)[0])


@torch.no_grad()
def test_samples_follow_the_distribution_of_the_model(model):
    prompt = prompts_of(1)[0]
    found = model.generate(prompt, n=3000, max_new_tokens=2, seed=11, temperature=1.3, batch_size=256)
    drawn = torch.tensor([r.tokens for r in found])
    common = int(drawn[:, 0].mode().values)
    seconds = drawn[drawn[:, 0] == common, 1]
    assert len(seconds) > 300
    for tokens, past in ((drawn[:, 0], prompt), (seconds, [*prompt, common])):
        logits = model(torch.tensor([past]))[0, -1].double()
        counts = torch.bincount(tokens, minlength=28).numpy()
        assert testing.chi_square(counts, (logits / 1.3).softmax(-1).numpy()) > testing.FALSE_ALARM
        assert testing.chi_square(counts, (logits / 3).softmax(-1).numpy()) < testing.FALSE_ALARM


def test_settings_are_the_same_numbers_alone_and_in_company():
    """Of ten equal logits 0.6 keeps six; the float32 next to 0.6 would keep seven."""
    model = Transformer(10, layers=1, heads=2, hidden=16, tied=False).eval()
    torch.nn.init.zeros_(model.head.weight)
    alone = model.generate([[1]], n=200, max_new_tokens=1, top_p=0.6)
    tokens = [r.tokens for r in alone]
    assert {token for (token,) in tokens} == set(range(6))
    for settings in ([0.6] * 200 + [0.9], torch.tensor([0.6] * 200 + [0.9], dtype=torch.float64)):
        mixed = model.generate([[1]] * 201, max_new_tokens=1, top_p=settings, batch_size=201)
        assert [r.tokens for r in mixed[:200]] == tokens


def test_nothing_given_is_changed_and_a_second_call_gives_the_same(model):
    prompts, ids = prompts_of(3), [5, 6, 7]
    before = [list(p) for p in prompts]
    first = model.generate(prompts, max_new_tokens=5, sample_ids=ids)
    assert prompts == before and ids == [5, 6, 7]
    assert model.generate(prompts, max_new_tokens=5, sample_ids=ids) == first
    as_tensors = [torch.tensor(prompt) for prompt in prompts]
    assert model.generate(as_tensors, max_new_tokens=5, sample_ids=ids) == first


def test_the_engine_samples_it(model):
    found = fastgen.sample(model, 6, seed=2, batch_size=4, progress=False, prompt="ab", length=7)
    assert found.shape == (6, 7)
    assert torch.equal(found[5], model.sample(torch.tensor([5]), seed=2, prompt="ab", length=7)[0])


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ("", {}, "prompt 0 is empty"),
        ([[1, 28]], {}, "prompt 0 holds token 28, wanted 0 to 27"),
        (5, {}, "prompts is 5, wanted a text"),
        ([[1], 2.5], {}, "prompt 1 is 2.5, wanted a text, tokens"),
        ([[1], [1.5]], {}, "prompt 1 is .*wanted a text, tokens, or messages"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens is 0, wanted at least 1"),
        ([1], {"max_new_tokens": "3"}, "max_new_tokens is '3', wanted an int"),
        ([1], {"cache_positions": "64"}, "cache_positions is '64', wanted an int"),
        ([1], {"temperature": None}, "temperature is None, wanted a number"),
        ([[1], [2]], {"top_p": [0.5, None]}, "top_p is None, wanted a number"),
        ([1], {"n": 0}, "n is 0, wanted at least 1"),
        ([1], {"n": 2, "sample_ids": [1]}, "sample_ids has 1 ids, wanted 2"),
        ([1], {"stop": ["a", ""]}, "stop is .*wanted a string or several, none of them empty"),
        ([1], {"temperature": [1.0, 2.0]}, "temperature has 2 values, wanted one, or one for each of 1"),
        ([1], {"temprature": 1.0}, "'temprature' is no option of generate"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"temperature": "0.7"}, "temperature is '0.7', wanted a number"),
        ([1], {"max_new_tokens": "5"}, "max_new_tokens is '5', wanted an int"),
        (b"a", {}, "prompts is b'a', wanted a text"),
        ("a@", {}, "prompt 0: the character '@' at place 1 is none of the model's 28"),
        (["b", "ab\tc"], {}, r"prompt 1: the character '\\t' at place 2 is none of the model's 28"),
        ([1], {"stop": 5}, "stop is 5, wanted a string or several"),
        ([1], {"sample_ids": 3}, "sample_ids is 3, wanted a list of ints"),
        ([1], {"length_penalty": 0.5}, "length_penalty is 0.5, but without beams it ranks nothing"),
        ([1], {"draft_tokens": 4}, "draft_tokens is 4, but without draft nothing is guessed"),
        ([1], {"cache_positions": 0}, "cache_positions is 0, wanted at least 1"),
        ([1], {"cache_positions": 64}, "sample 0 may need 128 .* cache has 64: raise cache_positions, or"),
        ([1], {"pass_tokens": 0}, "pass_tokens is 0, wanted at least 1"),
        ([1], {"on_text": 5}, "on_text is 5, wanted a function of an index and a text"),
        ([1], {"logit_bias": {"a": 1.0}}, "logit_bias is .*wanted a dict of numbers by token"),
        ([1], {"logit_bias": {1: float("nan")}}, "logit_bias of token 1 is nan, wanted a finite number"),
        ([1], {"logit_bias": 3.0}, "logit_bias is 3.0, wanted a dict of numbers by token"),
        ([1], {"sample_ids": ["a"]}, "an id of sample_ids is 'a', wanted an int"),
        ([1], {"sample_ids": [-1]}, "an id of sample_ids is -1, wanted 0 to"),
        ([1], {"logit_bias": {28: 1.0}}, "logit_bias names token 28, wanted 0 to 27"),
        ([1], {"batch_size": 0}, "batch_size is 0, wanted at least 1"),
        ([{"role": "user", "content": "a"}], {}, "no template of a chat"),
    ],
)
def test_bad_arguments_are_explained(model, prompts, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.generate(prompts, **options)

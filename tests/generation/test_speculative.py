"""Speculative decoding: the tokens of plain generation, in fewer passes, whoever guesses."""

import itertools

import numpy as np
import pytest
import torch

from fastgen.generation import scheduler, speculative
from fastgen.generation.speculative import Repeats, held
from fastgen.models import Transformer
from fastgen.testing import FALSE_ALARM, chi_square

PROMPTS = [[1, 2, 3, 1, 2, 3, 1, 2], [5, 6, 7], [9] * 20, list(range(30)) * 3]


def network(seed, vocabulary=40, **shape):
    torch.manual_seed(seed)
    model = Transformer(vocabulary, **({"layers": 2, "heads": 2, "hidden": 32, "context": 256} | shape))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


MODEL, SMALL = network(0), network(1, layers=1)


@pytest.fixture
def passes(monkeypatch):
    """Counts the passes of the model itself."""
    counted, run = [], scheduler.run_pass
    monkeypatch.setattr(scheduler, "run_pass", lambda *a: counted.append(1) or run(*a))
    return counted


SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.4},
    {},
    {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"temperature": [0.0, 0.5, 1.0, 2.0], "logit_bias": {3: -100.0}},
]


@pytest.mark.parametrize("draft", ["lookup", SMALL, MODEL], ids=["lookup", "small", "itself"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_token_is_that_of_plain_generation(draft, settings):
    options = {"max_new_tokens": 24, "seed": 3, "log_probs": True, **settings}
    plain = MODEL.generate(PROMPTS, **options)
    assert MODEL.generate(PROMPTS, draft=draft, **options) == plain
    assert MODEL.generate(PROMPTS, draft=draft, batch_size=2, draft_tokens=3, **options) == plain


def test_a_draft_model_that_is_the_model_itself_is_always_right(passes):
    MODEL.generate(PROMPTS[:1], max_new_tokens=41, draft=MODEL, draft_tokens=7)
    assert len(passes) == 1 + 40 / 8


def test_text_that_repeats_itself_is_looked_up(passes):
    """Greedy decoding runs into a cycle; from its second round on every guess is right."""
    (plain,) = MODEL.generate([PROMPTS[2]], max_new_tokens=120, temperature=0.0)
    assert plain.tokens[-20:] == plain.tokens[-40:-20] or len(set(plain.tokens[-40:])) < 20
    count = len(passes)
    MODEL.generate([PROMPTS[2]], max_new_tokens=120, temperature=0.0, draft="lookup")
    assert count == 120 and len(passes) - count < 60


def exact_probabilities(model, prompt, length):
    """Of every sequence of `length` tokens after the prompt, in the order of their numbers."""
    every = list(itertools.product(range(model.config["vocabulary"]), repeat=length))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens] for tokens in every]))
    log_p = logits.double().log_softmax(-1)[:, len(prompt) - 1 : -1]
    return log_p.gather(-1, torch.tensor(every)[..., None]).sum((1, 2)).exp().numpy()


def p_value(draft):
    model, prompt, length, samples = network(2, vocabulary=4), [0, 1, 2, 3, 0, 1], 4, 2000
    drawn = model.generate([prompt], n=samples, max_new_tokens=length, draft=draft, batch_size=500, seed=1)
    numbers = np.array([g.tokens for g in drawn]) @ 4 ** np.arange(length - 1, -1, -1)
    return chi_square(np.bincount(numbers, minlength=4**length), exact_probabilities(model, prompt, length))


DRAFTS = {"plain": None, "lookup": "lookup", "model": network(3, vocabulary=4, layers=1)}


@pytest.mark.parametrize("draft", DRAFTS)
def test_sequences_follow_the_models_distribution(draft):
    assert p_value(DRAFTS[draft]) > FALSE_ALARM


@pytest.mark.parametrize("draft", ["lookup", "model"])
def test_the_same_test_refuses_a_rule_that_keeps_what_follows_wrong_guesses(monkeypatch, draft):
    monkeypatch.setattr(scheduler, "held", lambda guess, drawn: len(drawn))
    assert p_value(DRAFTS[draft]) < FALSE_ALARM


def test_what_holds_of_a_guess():
    assert held([], [4]) == 1
    assert held([4, 5], [4, 5, 6]) == 3
    assert held([4, 5], [4, 7, 6]) == 2
    assert held([4, 5], [9, 5, 6]) == 1


def test_repeats_go_on_as_they_did_last():
    seen = Repeats()
    seen.extend([1, 2, 3, 4, 9, 2, 3, 5, 2])
    assert seen.guess(3) == []
    seen.extend([3])
    assert seen.guess(3) == [5, 2, 3]  # the later of the two places
    seen.extend([4])
    assert seen.guess(2) == [9, 2]  # three tokens tell more than two
    cycle = Repeats()
    cycle.extend([7, 8, 7, 8, 7])
    assert cycle.guess(5) == [8, 7, 8, 7, 8]


def test_a_sequence_ends_within_a_guess(passes):
    (plain,) = MODEL.generate([PROMPTS[2]], max_new_tokens=60, temperature=0.0)
    for limit in range(1, 12):
        for draft in ("lookup", MODEL):
            (short,) = MODEL.generate([PROMPTS[2]], max_new_tokens=limit, temperature=0.0, draft=draft)
            assert short.tokens == plain.tokens[:limit] and short.finish_reason == "length"


def test_a_draft_model_with_a_shorter_context_guesses_as_far_as_it_knows():
    learned = network(4, layout="gpt2", context=200)
    short = network(4, layout="gpt2", context=32)
    plain = learned.generate(PROMPTS, max_new_tokens=60)
    draft = network(5, layout="gpt2", context=120)
    assert learned.generate(PROMPTS, max_new_tokens=60, draft=draft) == plain
    few = [prompt[:20] for prompt in PROMPTS]
    assert learned.generate(few, max_new_tokens=60, draft=short) == learned.generate(few, max_new_tokens=60)


def test_nothing_is_kept_of_rows_that_are_finished(monkeypatch):
    made = []
    for kind in (speculative.Lookup, speculative.DraftModel):
        monkeypatch.setattr(
            kind, "forget", lambda self, row, was=kind.forget: made.append(self) or was(self, row)
        )
    MODEL.generate(PROMPTS, max_new_tokens=9, draft="lookup")
    MODEL.generate(PROMPTS, max_new_tokens=9, draft=SMALL)
    assert len(made) == 8 and not made[0]._repeats and not made[-1]._places
    assert made[-1].cache.free == made[-1].cache.pages


def test_bad_drafts_are_named():
    with pytest.raises(
        TypeError, match="draft is 'guess', wanted 'lookup', a Transformer of fastgen or None"
    ):
        MODEL.generate([[1]], draft="guess")
    with pytest.raises(ValueError, match="draft has a vocabulary of 7, wanted 40 as the model"):
        MODEL.generate([[1]], draft=network(0, vocabulary=7))
    with pytest.raises(ValueError, match="draft_tokens is 0, wanted at least 1"):
        MODEL.generate([[1]], draft="lookup", draft_tokens=0)

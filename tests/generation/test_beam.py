"""Beam search: transformers' own results, exhaustive search where it is small, and its rules."""

import itertools

import pytest
import torch

from fastgen.generation.beam import BeamSearch, Hypothesis, beam_search
from fastgen.models import Transformer

transformers = pytest.importorskip("transformers")
END = 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A LlamaForCausalLM with random weights, and the same as fastgen's."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, eos_token_id=END,
        bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    directory = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(directory)
    return theirs, Transformer.from_pretrained(directory)


def prompt_of(seed, length=7):
    return torch.randint(6, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def search(model, prompts, width, limit, ends=(), penalty=1.0, batch_size=32):
    searches = [BeamSearch(width, limit, ends, penalty) for _ in prompts]
    beam_search(model.weights(128), prompts, searches, batch_size)
    return [[(h.tokens, h.log_probs, h.finish_reason) for h in s.ended] for s in searches]


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -0.5])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_results_are_those_of_transformers(pair, width, penalty):
    theirs, ours = pair
    for seed in range(3):
        prompt = prompt_of(seed)
        wanted = theirs.generate(
            torch.tensor([prompt]), num_beams=width, num_return_sequences=width, max_new_tokens=25,
            do_sample=False, length_penalty=penalty, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        ((*found,),) = search(ours, [prompt], width, 25, (END,), penalty)
        for (tokens, log_probs, reason), row in zip(found, wanted.sequences[:, 7:].tolist(), strict=True):
            ended = row.index(END) + 1 if END in row else len(row)
            assert list(tokens) == row[:ended] and reason == ("end" if END in row else "length")
            assert len(log_probs) == ended
        if width > 1:
            scores = [sum(log_probs) / len(log_probs) ** penalty for _, log_probs, _ in found]
            assert scores == pytest.approx(wanted.sequences_scores.tolist(), abs=1e-4)


def test_a_search_as_wide_as_everything_finds_the_best():
    torch.manual_seed(1)
    model = Transformer(4, layers=1, heads=2, hidden=16)
    every = list(itertools.product(range(4), repeat=4))
    log_p = model.log_prob(torch.tensor([[2, *tokens] for tokens in every]))
    ((*found,),) = search(model, [[2]], 256, 4)
    order = log_p.argsort(descending=True)
    assert [tokens for tokens, _, _ in found[:20]] == [every[i] for i in order[:20]]
    assert [sum(p) for _, p, _ in found] == pytest.approx(log_p[order].tolist(), abs=1e-5)


def test_a_search_does_not_depend_on_what_runs_beside_it(pair):
    _, model = pair
    prompts = [prompt_of(seed, length) for seed, length in enumerate((3, 70, 64, 1, 70, 9))]
    prompts[4] = prompts[1][:65] + prompts[4][65:]  # begins as another does
    together = search(model, prompts, 3, 20, (END,))
    assert search(model, prompts, 3, 20, (END,), batch_size=6) == together
    assert [search(model, [prompt], 3, 20, (END,))[0] for prompt in prompts] == together


def test_generate_gives_the_best_of_each_prompt(pair):
    _, model = pair
    prompts = [prompt_of(1), prompt_of(2, 20)]
    found = model.generate(prompts, beams=4, n=2, max_new_tokens=12, log_probs=True, length_penalty=0.5)
    wanted = search(model, prompts, 4, 12, penalty=0.5)
    assert [(g.prompt, tuple(g.tokens), tuple(g.log_probs)) for g in found] == [
        (i, tokens, log_probs) for i in range(2) for tokens, log_probs, _ in wanted[i][:2]
    ]
    plain = model.generate(prompts, temperature=0.0, max_new_tokens=12)
    assert [g.tokens for g in model.generate(prompts, beams=1, max_new_tokens=12)] == [
        g.tokens for g in plain
    ]
    assert model.generate([], beams=2) == []


def logits_of(*rows):
    return torch.tensor(rows).log()


def test_ended_continuations_are_set_aside_and_do_not_take_a_place():
    found = BeamSearch(width=2, limit=9, end_tokens=(0,))
    assert found.advance(logits_of([0.5, 0.3, 0.2])) == [0, 0]
    assert [h.tokens for h in found.ended] == [(0,)]
    assert [h.tokens for h in found.alive] == [(1,), (2,)]
    assert not found.done
    # After token 1 ending is less probable than both ways to go on: it is not among the two best.
    assert found.advance(logits_of([0.1, 0.5, 0.4], [0.2, 0.4, 0.4])) == [0, 0]
    assert [h.tokens for h in found.alive] == [(1, 1), (1, 2)] and len(found.ended) == 1


def test_a_search_is_done_when_nothing_alive_scores_better():
    found = BeamSearch(width=1, limit=9, end_tokens=(0,), length_penalty=0.0)
    found.advance(logits_of([0.6, 0.4]))
    assert found.done and found.ended[0].tokens == (0,) and found.ended[0].finish_reason == "end"
    found = BeamSearch(width=1, limit=9, end_tokens=(0,), length_penalty=0.0)
    found.advance(logits_of([0.4, 0.6]))
    assert not found.done and not found.ended


def test_the_score_is_a_mean_or_a_sum():
    found = Hypothesis((1, 2), (-1.0, -3.0))
    assert (found.score(0.0), found.score(1.0), found.score(2.0)) == (-4.0, -2.0, -1.0)


def test_bad_options_are_named(pair):
    _, model = pair
    for options, message in (
        ({"beams": 0}, "beams is 0, wanted at least 1"),
        ({"beams": 2.5}, "beams is 2.5, wanted an int"),
        ({"beams": 2, "n": 3}, "n is 3, wanted at most beams = 2"),
        ({"beams": 2, "temperature": 0.5}, "temperature is 0.5, but a search with beams draws nothing"),
        ({"beams": 2, "draft": "lookup"}, "draft is 'lookup', but a search"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            model.generate([[1]], **options)

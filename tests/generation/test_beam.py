"""Beam search: transformers' own results, exhaustive search where it is small, and its rules."""

import itertools

import pytest
import torch

from fastgen.generation import Tokenizer
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
    found = Hypothesis((1, 2), (-1.0, -3.0), total=-4.0)
    assert (found.score(0.0), found.score(1.0), found.score(2.0)) == (-4.0, -2.0, -1.0)


LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def writer():
    """A model of ten letters, with its tokenizer."""
    torch.manual_seed(4)
    model = Transformer(10, layers=2, heads=2, hidden=32, context=64)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.35)
    model.tokenizer = Tokenizer.of_characters(LETTERS)
    return model.eval()


def brute_force(model, prompt, width, limit, stops, penalty=1.0):
    """Texts and scores of a search with stop strings, by the definition, over whole sequences."""

    def ends(text):
        return any(stop in text for stop in stops) or len(text) == limit

    def log_prob(text):
        tokens = model.tokenizer.encode(prompt + text)
        before = torch.tensor([tokens[: len(prompt)]])
        of_prompt = float(model.log_prob(before)) if len(prompt) > 1 else 0.0
        return float(model.log_prob(torch.tensor([tokens]))) - of_prompt

    def score(text):
        return log_prob(text) / len(text) ** penalty

    alive, ended = [""], []
    while alive and not (len(ended) == width and score(ended[-1]) >= score(alive[0])):
        every = sorted((a + letter for a in alive for letter in LETTERS), key=log_prob, reverse=True)
        ended = sorted(ended + [text for text in every[:width] if ends(text)], key=score, reverse=True)[
            :width
        ]
        alive = [text for text in every if not ends(text)][:width]
    return [(text, score(text)) for text in ended]


@pytest.mark.parametrize("stops", [["b"], ["ca", "d"], list("abcdefgh"), ["jjjj"]], ids=str)
def test_stop_strings_end_a_hypothesis_as_they_end_a_sample(writer, stops):
    for prompt in ("a", "fish"[:1], "bad"):
        found = writer.generate(prompt, beams=3, n=3, stop=stops, max_new_tokens=4, log_probs=True)
        wanted = brute_force(writer, prompt, 3, 4, stops)
        assert [writer.tokenizer.decode(g.tokens) for g in found] == [text for text, _ in wanted]
        for g, (text, score) in zip(found, wanted, strict=True):
            assert sum(g.log_probs) / len(g.tokens) == pytest.approx(score, abs=1e-4)
            at = min([text.index(stop) for stop in stops if stop in text], default=len(text))
            assert g.text == text[:at] and g.finish_reason == ("stop" if at < len(text) else "length")


def test_a_search_goes_on_where_stop_strings_end_all_that_is_most_probable(writer):
    """With nine of ten letters ended the one that goes on is looked for below the ten best."""
    found = writer.generate("a", beams=2, n=2, stop=list("abcdefghi"), max_new_tokens=3)
    log_p = writer(torch.tensor([writer.tokenizer.encode("a")]))[0, -1].log_softmax(-1)
    best = int(log_p.argmax())
    assert found[0].tokens == [best] and len(found) == 2


def test_penalties_and_biases_change_what_is_best_but_not_log_probs(writer):
    options = {"beams": 3, "max_new_tokens": 5, "log_probs": True}
    prompts = ["abc", "hij"]
    biases = [None, {0: float("-inf"), 3: 2.0}]
    mixed = writer.generate(prompts, repetition_penalty=[1.0, 1.8], logit_bias=biases, **options)
    plain = writer.generate(prompts, **options)
    assert mixed[0] == plain[0] and mixed[1].tokens != plain[1].tokens and 0 not in mixed[1].tokens
    whole = torch.tensor([writer.tokenizer.encode("hij") + mixed[1].tokens])
    wanted = writer.log_prob(whole) - writer.log_prob(whole[:, :3])
    assert sum(mixed[1].log_probs) == pytest.approx(float(wanted), abs=1e-4)
    # One beam is greedy, and greedy sampling knows the same penalties.
    settings = {"repetition_penalty": 1.8, "presence_penalty": 0.5, "frequency_penalty": 0.7}
    settings |= {"logit_bias": {2: 1.5}, "max_new_tokens": 12}
    for prompt in prompts:
        greedy = writer.generate(prompt, temperature=0, **settings)[0]
        assert writer.generate(prompt, beams=1, **settings)[0].tokens == greedy.tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams is 0, wanted at least 1"),
        ({"beams": 2.5}, "beams is 2.5, wanted an int"),
        ({"n": 3}, "n is 3, wanted at most beams = 2"),
        ({"batch_size": 1}, "batch_size is 1, wanted at least beams = 2"),
        ({"temperature": 0.5}, "temperature is 0.5, but a search with beams draws nothing: leave it out"),
        ({"top_k": 5}, "top_k is 5, but a search with beams draws nothing"),
        ({"sample_ids": [1]}, "sample_ids is .*, but a search with beams draws nothing"),
        (
            {"draft": "lookup"},
            "draft is 'lookup', but a search with beams sees its tokens one after the other",
        ),
        ({"draft_tokens": 3}, "draft_tokens is 3, but a search with beams"),
        ({"pass_tokens": 64}, "pass_tokens is 64, but a search with beams takes each prompt in one pass"),
        ({"cache_positions": 64}, "cache_positions is 64, but a search with beams takes the memory"),
        ({"on_text": print}, "on_text is .*, but a search with beams knows its texts at its end alone"),
        ({"length_penalty": "1"}, "length_penalty is '1', wanted a finite number"),
        ({"repetition_penalty": [1.0, 2.0]}, "repetition_penalty has 2 values, wanted one"),
        ({"colour": 1}, "'colour' is no option of generate; it takes max_new_tokens, .*, temperature"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_search_has_no_use_for_is_refused(writer, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        writer.generate([[1]], **{"beams": 2} | options)

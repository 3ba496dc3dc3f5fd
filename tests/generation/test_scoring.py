"""Scores: log-probabilities of given texts are those of the network, whatever stands beside them."""

import math

import pytest
import torch

from fastgen.generation import Tokenizer, scoring
from fastgen.models import Transformer

LETTERS = "abcdefghijklmnopqrstuvwxyz \n"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    torch.manual_seed(0)
    made = Transformer(len(LETTERS), layout=request.param, layers=2, heads=2, hidden=32, context=300)
    for parameter in made.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    made.tokenizer = Tokenizer.of_characters(LETTERS)
    return made.eval()


def of_network(model, tokens):
    """Log-probabilities of tokens 2 .. by PyTorch's operations."""
    with torch.enable_grad():
        logits = model(torch.tensor([tokens[:-1]]))[0].detach()
    return logits.double().log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def texts_of(count, longest=300):
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(2, longest + 2, (count,), generator=generator).tolist()
    return [torch.randint(28, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("most", [2**24, 28 * 256])  # of logits in memory: texts together, and in parts
def test_scores_are_those_of_the_network_and_the_same_in_any_company(model, monkeypatch, most):
    monkeypatch.setattr(scoring, "_LOGITS", most)
    texts = texts_of(9)
    found = model.score(texts)
    for text, score in zip(texts, found, strict=True):
        wanted = of_network(model, text)
        assert score.tokens == text[1:] and len(score.log_probs) == len(text) - 1
        assert score.log_probs == pytest.approx(wanted.tolist(), abs=2e-4)
        assert score.log_prob == pytest.approx(float(wanted.sum()), abs=1e-2)
        assert score.perplexity == pytest.approx(math.exp(-float(wanted.mean())), rel=1e-4)
        assert model.score([text])[0] == score
        assert model.perplexity(text) == pytest.approx(score.perplexity, rel=1e-5)


def test_what_follows_a_prompt_is_scored_and_the_prompt_is_not(model):
    choices = ["the cat", "a dog", "x"]
    together = model.score(choices, prompts="who sat there ")
    for choice, score in zip(choices, together, strict=True):
        whole = model.tokenizer.encode("who sat there " + choice)
        assert score.tokens == whole[14:]
        assert score.log_probs == pytest.approx(of_network(model, whole)[13:].tolist(), abs=2e-4)
    each = model.score(choices, prompts=["who sat there ", "b", [1, 2]])
    assert each[0] == together[0] and each[1] != together[1]
    assert len(each[2].log_probs) == 1


def test_generated_tokens_have_the_scores_that_generation_gave(model):
    (text,) = model.generate("hello", max_new_tokens=30, log_probs=True, temperature=0.7)
    score = model.score([text.tokens], prompts="hello")[0]
    assert score.tokens == text.tokens and score.log_probs == pytest.approx(text.log_probs, abs=1e-5)


def test_a_long_row_in_parts_starts_where_it_is_asked_to(model, monkeypatch):
    """The first part of a long prompt gives no scores at all."""
    monkeypatch.setattr(scoring, "_LOGITS", 28 * 256)
    tokens = texts_of(1)[0] + texts_of(2)[0]
    tokens = (tokens * 3)[:301]
    score = model.score([tokens[290:]], prompts=[tokens[:290]])[0]
    assert score.log_probs == pytest.approx(of_network(model, tokens)[289:].tolist(), abs=2e-4)


def test_nothing_in_nothing_out(model):
    assert model.score([]) == []
    assert model.log_prob(torch.empty(0, 5, dtype=torch.int64)).shape == (0,)
    assert model(torch.empty(0, 5, dtype=torch.int64)).shape == (0, 5, 28)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([[1]], {}, "text 0, with what stands before it, has 1 tokens, wanted 2 to 301"),
        (["ab", [1] * 302], {}, "text 1, with what stands before it, has 302 tokens, wanted 2 to 301"),
        ([[1, 28]], {}, "text 0 holds token 28, wanted 0 to 27"),
        (["ab", "a!"], {}, "text 1: the character '!' at place 1"),
        (5, {}, "texts is 5, wanted a text"),
        (["ab"], {"prompts": ["a", "b"]}, "prompts are 2, wanted one, or one for each of 1 texts"),
        ([""], {"prompts": "a"}, "text 0 is empty"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(model, texts, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.score(texts, **options)


def test_perplexity_is_of_one_text_and_begins_as_a_score_does(model, monkeypatch):
    for several in ([], ["ab", "cd"]):
        with pytest.raises(ValueError, match=f"text is a list of {len(several)}, wanted one text"):
            model.perplexity(several)
    with pytest.raises(ValueError, match="text 0 is empty, wanted at least one token"):
        model.perplexity("")
    encode = model.tokenizer.encode  # of a tokenizer with a token for the beginning of texts
    monkeypatch.setattr(
        model.tokenizer, "encode", lambda text, begin=False: [3] * begin + encode(text), raising=True
    )
    assert model.perplexity("ab") == model.score([[3, *encode("ab")]])[0].perplexity

"""The op sample_logits: its distribution, and what its settings keep."""

import itertools

import numpy as np
import pytest
import torch
from sample_logits_inputs import HERE, INF, equal, kept, make
from scipy import stats

from fastgen import use_backend
from fastgen.ops import sample_logits
from fastgen.random import bits
from fastgen.reference import random as reference_random
from fastgen.testing import FALSE_ALARM, chi_square

# The distribution, against float64 written from the definitions.


def expected(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0):
    """Probabilities of one row that has no ties."""
    z = logits.double().numpy() / temperature
    p = np.exp(z - z.max())
    by_rank = np.argsort(-p)
    p[by_rank[top_k or len(p) :]] = 0
    p /= p.sum()
    p[by_rank[p[by_rank].cumsum() - p[by_rank] >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    p /= p.sum()
    surprise = -np.log(np.where(p > 0, p, 1))
    distance = np.where(p > 0, np.abs(surprise - (p * surprise).sum()), INF)
    by_rank = np.argsort(distance)
    p[by_rank[(p[by_rank].cumsum() - p[by_rank] >= typical_p)]] = 0
    return p / p.sum()


SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 9},
    {"top_p": 0.7},
    {"temperature": 1.5, "min_p": 0.1},
    {"typical_p": 0.6},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8},
]


def p_value(rows, settings, seed=3):
    logits = make(1, 40)
    drawn = sample_logits(logits.expand(rows, 40), seed=seed, **settings).token
    return chi_square(np.bincount(drawn.numpy(), minlength=40), expected(logits[0], **settings))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens_follow_the_filtered_distribution(backend, settings):
    with use_backend(backend):
        assert p_value(1 << 15, settings) > FALSE_ALARM


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=str)
def test_the_same_test_refuses_noise_that_is_5_percent_too_wide(monkeypatch, settings):
    noise = reference_random.gumbel_from_words
    monkeypatch.setattr(reference_random, "gumbel_from_words", lambda words: 1.05 * noise(words))
    with use_backend("reference"):
        assert p_value(1 << 15, settings) < FALSE_ALARM


def test_a_tail_of_many_rare_tokens_keeps_its_mass():
    """Half of the mass in one token, the other half in 2**17, each of less than 2**-18."""
    tail, rows = 1 << 17, 16
    logits = torch.zeros(rows, tail + 1)
    logits[:, 0] = float(np.log(tail))
    drawn = torch.cat([sample_logits(logits, seed=4, step=step).token for step in range(128)]).numpy()
    counts = np.array([(drawn == 0).sum(), *np.histogram(drawn[drawn > 0], bins=4, range=(1, tail + 1))[0]])
    assert chi_square(counts, np.array([0.5, 0.125, 0.125, 0.125, 0.125])) > FALSE_ALARM


def test_the_noise_is_gumbels_and_finite():
    words = bits(5, torch.arange(1 << 16), n=1).flatten().long()
    noise = reference_random.gumbel_from_words(words).double().numpy()
    assert stats.kstest(noise, "gumbel_r").pvalue > FALSE_ALARM
    ends = reference_random.gumbel_from_words(torch.tensor([0, 1, 2**32 - 2, 2**32 - 1]))
    assert ends.tolist() == pytest.approx([32 * np.log(2)] * 2 + [-np.log(32 * np.log(2))] * 2, abs=1e-5)


def test_the_noise_is_right_to_the_last_places():
    some = bits(6, torch.arange(1 << 16), n=1).flatten().long()
    words = torch.cat([some, some >> 12, some >> 24, 2**32 - 1 - (some >> 20), 2**29 + (some >> 20)])
    v = ((words >> 1).double() + 0.5) / 2**31
    exact = -torch.log1p(-v)
    exponential = reference_random.exponential_from_words(words)
    assert float((exponential.double() / exact - 1).abs().max()) < 3e-7
    assert torch.allclose(
        reference_random.gumbel_from_words(words).double(), -exact.log(), rtol=3e-7, atol=5e-7
    )


# What the settings keep, against transformers and at the ends of their ranges.


def transformers_keeps(logits, settings):
    """The tokens that transformers' processors leave, in float64."""
    transformers = pytest.importorskip("transformers")
    kinds = {
        "temperature": transformers.TemperatureLogitsWarper, "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper, "min_p": transformers.MinPLogitsWarper,
        "typical_p": transformers.TypicalLogitsWarper,
    }  # fmt: skip
    scores = logits.double()
    for name, value in settings.items():
        scores = kinds[name](value)(None, scores)
    return scores > -INF


GRID = {
    "temperature": (0.4, 1.0, 1.8), "top_k": (None, 1, 12, 200), "top_p": (None, 0.2, 0.9, 0.999),
    "min_p": (None, 0.03, 0.9), "typical_p": (None, 0.2, 0.95),
}  # fmt: skip


def test_every_combination_keeps_what_transformers_keeps():
    for number, values in enumerate(itertools.product(*GRID.values())):
        settings = {name: x for name, x in zip(GRID, values, strict=True) if x is not None}
        logits = make(3, 60 if number % 2 else 300, seed=number)
        assert torch.equal(kept(logits, settings), transformers_keeps(logits, settings)), settings


@pytest.mark.parametrize("backend", HERE)
def test_penalties_are_those_of_transformers_and_of_their_formula(backend):
    transformers = pytest.importorskip("transformers")
    logits, prompt = make(3, 20), torch.tensor([[0, 5, 5, 19]] * 3)
    output = torch.tensor([[7, 7, 7], [5, -1, -1], [19, 2, -1]])
    everything = torch.cat([prompt, torch.where(output < 0, prompt[:, :1], output)], 1)
    wanted = transformers.RepetitionPenaltyLogitsProcessor(1.7)(everything, logits)
    for row, token in ((0, 7), (1, 5), (2, 19), (2, 2)):
        wanted[row, token] -= 0.3 * int((output[row] == token).sum()) + 0.9
    settings = {"repetition_penalty": 1.7, "presence_penalty": 0.9, "frequency_penalty": 0.3}
    history = {"prompt_tokens": prompt, "output_tokens": output}
    for seed in range(40):
        with use_backend(backend):
            drawn = sample_logits(logits, seed=seed, **settings, **history)
            assert torch.equal(drawn.token, sample_logits(wanted, seed=seed).token)


@pytest.mark.parametrize("backend", HERE)
def test_a_bias_shifts_and_bans(backend):
    logits, bias = make(5, 30), make(5, 30, seed=1)
    bias[:, 3:] = -INF
    with use_backend(backend):
        for given, sums in ((bias, logits + bias), (bias[0], logits + bias[0])):
            drawn = sample_logits(logits, seed=1, logit_bias=given)
            assert torch.equal(drawn.token, sample_logits(sums, seed=1).token) and int(drawn.token.max()) < 3


def draws_with(backend, logits, rows=64, **settings):
    with use_backend(backend):
        return sample_logits(logits.expand(rows, -1), seed=9, **settings).token


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    "settings", [{"top_k": 1}, {"temperature": 0.0}, {"top_p": 0.0}, {"min_p": 1.0, "top_k": 1}]
)
def test_one_token_is_the_first_of_the_highest(backend, settings):
    logits = torch.tensor([[1.0, -0.0, 3.0, 3.0, 0.0, 3.0] + [2.9] * 40])
    assert draws_with(backend, logits, **settings).unique().tolist() == [2]
    zeros = torch.tensor([[-1.0, -0.0, 0.0, -0.0]])
    assert draws_with(backend, zeros, **settings).unique().tolist() == [1]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    "settings, tokens",
    [
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_p": 0.25}, [0, 1, 2]),
        ({"typical_p": 0.25}, [0, 1, 2]),
        ({"min_p": 1.0}, None),
    ],
)
def test_ties_at_the_border_are_cut_at_the_lowest_tokens(backend, settings, tokens):
    drawn = draws_with(backend, torch.zeros(1, 12), rows=256, **settings).unique().tolist()
    assert drawn == (tokens or list(range(12)))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    "settings",
    [{"top_k": 0}, {"top_k": 50}, {"top_k": 10**9}, {"top_p": 1.0}, {"min_p": 0.0}, {"typical_p": 1.0}],
)
def test_the_ends_of_the_ranges_keep_all(backend, settings):
    logits = make(40, 50)
    with use_backend(backend):
        assert equal(sample_logits(logits, seed=2, **settings), sample_logits(logits, seed=2))


@pytest.mark.parametrize("backend", HERE)
def test_minus_infinity_is_never_drawn_and_infinity_always(backend):
    logits = torch.zeros(1, 70)
    logits[0, 1:69] = -INF
    assert draws_with(backend, logits).unique().tolist() == [0, 69]
    logits[0, 20] = logits[0, 30] = INF
    for settings in ({}, {"top_k": 9}, {"top_p": 0.99}, {"typical_p": 0.99}, {"temperature": 1e-30}):
        assert draws_with(backend, logits, **settings).unique().tolist() == [20, 30]
    with use_backend(backend):
        drawn = sample_logits(logits, seed=1)
    assert drawn.log_prob.tolist() == pytest.approx([-np.log(2)])


@pytest.mark.parametrize("backend", HERE)
def test_temperature_comes_before_top_p_and_top_k_before_it(backend):
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    # At temperature 0.5 the first token has 0.25 / 0.38 of the mass, more than 0.6.
    assert draws_with(backend, logits, temperature=0.5, top_p=0.6).unique().tolist() == [0]
    # Of the two that top-k leaves, the first has 0.5 / 0.8 of the mass.
    assert draws_with(backend, logits, top_k=2, top_p=0.6).unique().tolist() == [0]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_log_probabilities_are_the_models_own(backend, scale):
    logits = make(20, 3000, scale=scale)
    with use_backend(backend):
        drawn = sample_logits(logits, seed=1, temperature=0.7, top_k=30, logit_bias=torch.ones(3000))
    wanted = logits.double().log_softmax(1).gather(1, drawn.token[:, None])[:, 0]
    assert torch.allclose(drawn.log_prob.double(), wanted, rtol=1e-6, atol=2e-6)

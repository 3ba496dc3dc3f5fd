"""The op sample_logits: its bits, the memory it touches, and what it refuses."""

import pytest
import torch
from sample_logits_inputs import HERE, INF, ISAS, equal, kept, make

from fastgen import native, use_backend
from fastgen.ops import sample_logits
from fastgen.random import Stream, bits
from fastgen.reference import sample_logits as reference
from fastgen.testing import fenced, with_threads


@pytest.mark.parametrize("backend", HERE)
def test_a_token_keeps_its_noise_whatever_the_filters(backend):
    """Noise belongs to the token, not to its rank: a survivor that won the whole row wins among fewer."""
    logits = make(200, 60, scale=1.0)
    with use_backend(backend):
        whole = sample_logits(logits, seed=7).token
        for settings in ({"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.2}, {"typical_p": 0.8}):
            some = kept(logits, settings).gather(1, whole[:, None])[:, 0]
            assert 50 < int(some.sum()) < 200
            assert torch.equal(sample_logits(logits, seed=7, **settings).token[some], whole[some])


@pytest.mark.parametrize("backend", HERE)
def test_the_draw_is_the_race_of_the_documented_words(backend):
    logits, ids, step = make(9, 300), torch.arange(9) * 10**15, 2**32 - 1
    words = bits(11, ids, step=step, n=300, stream=Stream.TOKEN).long()
    noise = -torch.log(-torch.log1p(-((words >> 1).double() + 0.5) / 2**31))
    with use_backend(backend):
        drawn = sample_logits(logits, seed=11, sample_ids=ids, step=step)
    assert torch.equal(drawn.token, (logits.double() + noise).argmax(1))


@pytest.mark.parametrize("backend", HERE)
def test_samples_steps_and_seeds_draw_anew(backend):
    logits = torch.zeros(4, 5000)
    with use_backend(backend):
        drawn = [
            sample_logits(logits, seed=1).token,
            sample_logits(logits, seed=2).token,
            sample_logits(logits, seed=1, step=1).token,
            sample_logits(logits, seed=1, step=torch.tensor([2, 3, 4, 5])).token,
        ]
    assert torch.cat(drawn).unique().numel() == 16


def test_without_a_seed_torch_gives_one():
    logits = torch.zeros(8, 1000)
    torch.manual_seed(1)
    first = sample_logits(logits)
    assert not equal(sample_logits(logits), first)
    torch.manual_seed(1)
    assert equal(sample_logits(logits), first)


def random_settings(generator, rows, vocabulary):
    """Settings for each row, each at rest in about a third of the rows, and tokens of the past."""

    def pick(*values):
        some = torch.randint(0, len(values), (rows,), generator=generator)
        return torch.tensor(values)[some]

    return {
        "temperature": pick(1.0, 0.7, 0.0, 1e-5, 1e6), "top_k": pick(0, 0, 1, 5, vocabulary // 2 + 1),
        "top_p": pick(1.0, 1.0, 0.9, 0.3, 0.0), "min_p": pick(0.0, 0.0, 0.05, 1.0),
        "typical_p": pick(1.0, 1.0, 0.9, 0.2), "repetition_penalty": pick(1.0, 1.2, 0.7),
        "presence_penalty": pick(0.0, 0.5), "frequency_penalty": pick(0.0, 0.3),
        "prompt_tokens": torch.randint(-1, vocabulary, (rows, 5), generator=generator),
        "output_tokens": torch.randint(-1, vocabulary, (rows, 9), generator=generator),
    }  # fmt: skip


def hostile(kind, rows, vocabulary, seed):
    logits = make(rows, vocabulary, seed, scale=1.0)
    if kind == "ties":
        return logits.round()
    if kind == "banned":
        return torch.where(logits < 0.5, -INF, logits).index_fill(1, torch.tensor([vocabulary // 2]), 1.0)
    if kind == "steep":
        return 30 * logits
    return torch.arange(vocabulary).float().expand(rows, -1) * 1e-3 if kind == "ascending" else logits


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["normal", "ties", "banned", "steep", "ascending"])
@pytest.mark.parametrize("vocabulary", [1, 2, 15, 100, 1025, 4099])
def test_native_has_the_bits_of_the_reference(isa, kind, vocabulary):
    logits = hostile(kind, 24, vocabulary, seed=vocabulary)
    settings = random_settings(torch.Generator().manual_seed(vocabulary), 24, vocabulary)
    with use_backend("reference"):
        wanted = sample_logits(logits, seed=1, **settings)
    with use_backend("native"), native.instruction_set(isa):
        assert equal(sample_logits(logits, seed=1, **settings), wanted)


@pytest.mark.parametrize("backend", HERE)
def test_a_row_is_the_same_alone_in_a_batch_permuted_and_with_other_threads(backend):
    rows, vocabulary = 17, 500
    logits = make(rows, vocabulary)
    settings = random_settings(torch.Generator().manual_seed(1), rows, vocabulary)
    ids, order = torch.arange(rows) + 100, torch.randperm(rows, generator=torch.Generator().manual_seed(2))

    def draw(some):
        given = {name: x[some] for name, x in settings.items()}
        return sample_logits(logits[some], seed=5, sample_ids=ids[some], step=3, **given)

    with use_backend(backend):
        whole, permuted = draw(slice(None)), draw(order)
        assert torch.equal(permuted.token, whole.token[order])
        assert torch.equal(permuted.log_prob, whole.log_prob[order])
        for row in range(0, rows, 4):
            alone = draw(slice(row, row + 1))
            assert torch.equal(alone.token, whole.token[row : row + 1])
            assert torch.equal(alone.log_prob, whole.log_prob[row : row + 1])
        for count in (1, 2, 3):
            with with_threads(count):
                assert equal(draw(slice(None)), whole)


@pytest.mark.parametrize("backend", HERE)
def test_a_setting_of_each_row_is_that_number_for_the_row(backend):
    logits = make(6, 80)
    values = {"temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.9}
    with use_backend(backend):
        plain = sample_logits(logits, seed=3)
        for name, value in values.items():
            first = plain.token.new_tensor(value) if name == "top_k" else torch.tensor(value)
            off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}[name]
            mixed = torch.stack([first, torch.tensor(off, dtype=first.dtype)] * 3)
            drawn = sample_logits(logits, seed=3, **{name: mixed})
            alone = sample_logits(logits, seed=3, **{name: float(first) if name != "top_k" else value})
            assert torch.equal(drawn.token[0::2], alone.token[0::2])
            assert torch.equal(drawn.token[1::2], plain.token[1::2])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(backend, dtype):
    logits = make(5, 90).to(dtype)
    with use_backend(backend):
        assert equal(
            sample_logits(logits, seed=3, top_p=0.9), sample_logits(logits.float(), seed=3, top_p=0.9)
        )


@pytest.mark.parametrize("backend", HERE)
def test_any_strides_and_no_rows(backend):
    logits = make(6, 90)
    with use_backend(backend):
        assert equal(sample_logits(logits.T.contiguous().T, seed=3), sample_logits(logits, seed=3))
        assert sample_logits(logits[:0], seed=3).token.shape == (0,)
        assert sample_logits(logits[::2], seed=3).token.shape == (3,)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocabulary", [1, 7, 31, 130, 1000])
def test_native_stays_within_its_memory(isa, vocabulary):
    rows = 3
    settings = torch.tensor(
        [[1, 5, 1, 0, 1, 1.2, 0, 0.1], [1, 0, 0.9, 0, 0.9, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0]]
    )
    tokens = torch.randint(0, vocabulary, (rows, 4), generator=torch.Generator().manual_seed(1))
    plain = make(rows, vocabulary)
    with (
        native.instruction_set(isa),
        fenced((rows, vocabulary), torch.float32) as logits,
        fenced((rows,), torch.int64) as token,
        fenced((rows,), torch.float32) as log_prob,
    ):
        logits.copy_(plain)  # fences of 0x5A5A5A5A are large floats: one that is read would win
        arguments = (
            1,
            torch.arange(rows),
            torch.zeros(rows, dtype=torch.int64),
            settings.double(),
            tokens,
            tokens,
        )
        torch.ops.fastgen_native.sample_logits(token, log_prob, logits, *arguments, None)
        assert bool((token >= 0).all() & (token < vocabulary).all()) and not bool(log_prob.isnan().any())
        assert torch.equal(log_prob, reference.log_probability(plain, token))


@pytest.mark.skipif("native" not in HERE, reason="the C++ extension is not here")
def test_the_kernel_stays_in_its_memory_whatever_the_settings():
    """The op refuses such settings; below it they must not decide where memory is touched."""
    rows, vocabulary = 3, 5000
    logits = make(rows, vocabulary)
    ids = torch.arange(rows)
    strange = (torch.nan, torch.inf, -torch.inf, -1.0, -1e300, 1e300)
    for column in range(8):
        for value in strange:
            for plain in ([1.0, 0, 0.5, 0.1, 0.9, 1.2, 0.1, 0.1], [1.0, 5, 0.5, 0.1, 0.9, 1.2, 0.1, 0.1]):
                settings = torch.tensor([plain] * rows, dtype=torch.float64)
                settings[1, column] = value
                token, log_prob = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
                torch.ops.fastgen_native.sample_logits(
                    token, log_prob, logits, 1, ids, ids, settings, ids[:, None], ids[:, None], None
                )
                others = torch.stack([settings[0], settings[0], settings[0]])
                expected = torch.empty_like(token)
                torch.ops.fastgen_native.sample_logits(
                    expected, log_prob, logits, 1, ids, ids, others, ids[:, None], ids[:, None], None
                )
                assert -2 <= int(token[1]) < vocabulary
                assert torch.equal(token[::2], expected[::2])


def test_results_never_require_a_gradient():
    drawn = sample_logits(make(2, 5).requires_grad_(), seed=1)
    assert not drawn.log_prob.requires_grad


# What is refused.

OK = make(3, 5)
BAD = {
    "logits int": (lambda: sample_logits(OK.int()), "logits is torch.int32, wanted a float32, bfloat16 or"),
    "logits list": (lambda: sample_logits([1.0]), "logits is list, wanted"),
    "one row": (
        lambda: sample_logits(OK[0]),
        r"logits has shape \(5,\), wanted \(rows, 1 to 4194304 tokens\)",
    ),
    "no tokens": (lambda: sample_logits(OK[:, :0]), r"logits has shape \(3, 0\)"),
    "too many": (lambda: sample_logits(torch.zeros(1, 1).expand(1, 2**22 + 1)), "1 to 4194304 tokens"),
    "seed": (lambda: sample_logits(OK, seed=1.5), "seed is 1.5, wanted an int"),
    "ids": (
        lambda: sample_logits(OK, sample_ids=torch.tensor([1])),
        r"sample_ids has shape \(1,\), wanted \(3,\)",
    ),
    "id": (lambda: sample_logits(OK, sample_ids=torch.tensor([1, -1, 2])), "sample_ids holds -1"),
    "step": (lambda: sample_logits(OK, step=2**32), "step is 4294967296, wanted 0 to"),
    "steps": (lambda: sample_logits(OK, step=torch.tensor([0, -3, 1])), "step holds -3, wanted 0 to"),
    "step kind": (lambda: sample_logits(OK, step=torch.tensor([0.5] * 3)), "step is torch.float32"),
    "temperature": (lambda: sample_logits(OK, temperature=-1), "temperature is -1, wanted 0 to 1e"),
    "NaN": (lambda: sample_logits(OK, temperature=float("nan")), "temperature is nan, wanted 0 to"),
    "NaNs": (
        lambda: sample_logits(OK, top_p=torch.tensor([0.1, INF, 0.2])),
        "top_p holds inf, wanted 0 to 1",
    ),
    "top_k": (lambda: sample_logits(OK, top_k=-1), "top_k is -1, wanted 0 to"),
    "top_k kind": (lambda: sample_logits(OK, top_k=2.0), "top_k is 2.0, wanted an int or a tensor"),
    "top_ks kind": (
        lambda: sample_logits(OK, top_k=torch.ones(3)),
        "top_k is torch.float32 on cpu, wanted a number",
    ),
    "top_p": (lambda: sample_logits(OK, top_p=1.5), "top_p is 1.5, wanted 0 to 1"),
    "min_p": (lambda: sample_logits(OK, min_p=-0.5), "min_p is -0.5, wanted 0 to 1"),
    "typical": (lambda: sample_logits(OK, typical_p=2), "typical_p is 2, wanted 0 to 1"),
    "penalty": (lambda: sample_logits(OK, repetition_penalty=0), "repetition_penalty is 0, wanted 1e-06 to"),
    "shape": (
        lambda: sample_logits(OK, top_p=torch.ones(2)),
        r"top_p has shape \(2,\), wanted \(\) or \(3,\)",
    ),
    "word": (lambda: sample_logits(OK, min_p="0.1"), "min_p is '0.1', wanted a number or a tensor"),
    "tokens": (
        lambda: sample_logits(OK, output_tokens=torch.tensor([[5], [0], [0]])),
        "output_tokens holds 5",
    ),
    "tokens kind": (
        lambda: sample_logits(OK, prompt_tokens=torch.ones(3, 1)),
        "prompt_tokens is torch.float32",
    ),
    "tokens shape": (
        lambda: sample_logits(OK, prompt_tokens=torch.tensor([1])),
        r"prompt_tokens has shape \(1,\)",
    ),
    "bias shape": (
        lambda: sample_logits(OK, logit_bias=torch.ones(4)),
        r"logit_bias has shape \(4,\), wanted \(5,\)",
    ),
    "bias kind": (
        lambda: sample_logits(OK, logit_bias={1: 2.0}),
        "logit_bias is dict, wanted a floating tensor",
    ),
    "bias": (
        lambda: sample_logits(OK, logit_bias=torch.full((5,), INF)),
        "logit_bias holds inf, wanted finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"typical_p": 0.5}]
)
def test_rows_from_which_nothing_can_be_drawn_are_named(backend, settings):
    logits = make(4, 40)
    with use_backend(backend):
        logits[2] = -INF
        with pytest.raises(ValueError, match=r"logits\[2\] has no token above -inf"):
            sample_logits(logits, seed=1, **settings)
        with pytest.raises(ValueError, match=r"logits\[0\] has no token above -inf"):
            sample_logits(logits[:2], seed=1, logit_bias=torch.full((40,), -INF), **settings)
        logits[1, 39] = float("nan")
        with pytest.raises(ValueError, match=r"logits\[1\] holds NaN"):
            sample_logits(logits, seed=1, **settings)

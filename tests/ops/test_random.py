"""The draws: published answers, equal bits everywhere, statistics, and what they refuse."""

import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fastgen import backends, native, random, use_backend
from fastgen.random import Stream
from fastgen.reference import random as reference
from fastgen.testing import FALSE_ALARM, chi_square, fenced, with_threads

from .triton_compiler import compiled, compiling, interpreted, passed_ahead_of_time

ROOT = Path(__file__).parents[2]
DRAWS = ("bits", "uniform", "normal")
# Every implementation that runs here, each instruction set of the native one on its own.
HERE = [*(f"native {isa}" for isa in native.usable_isas()), "triton"]


def running(name):
    """Insist on one implementation of HERE (or the reference)."""
    stack = ExitStack()
    backend, _, isa = name.partition(" ")
    stack.enter_context(use_backend(backend))
    if isa:
        stack.enter_context(native.instruction_set(isa))
    return stack


def draw(name, *arguments, by="native", **options):
    with running(by):
        result = getattr(random, name)(*arguments, **options)
    return result.view(torch.int32) if result.dtype != torch.bool else result


# counter, key and output of Philox4x32-10 as published with Random123 (kat_vectors)
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, answer):
    def numbers(text):
        return [int(word, 16) for word in text.split()]

    words = reference.philox([torch.tensor(c) for c in numbers(counter)], tuple(numbers(key)))
    assert [int(w) for w in words] == numbers(answer)


@pytest.mark.parametrize("by", ["reference", *HERE])
def test_the_counter_and_key_are_laid_out_as_published(by):
    """The published vector with counter and key 0 is what seed 0, sample 0 draws first."""
    words = draw("bits", 0, torch.zeros(1, dtype=torch.int64), n=4, by=by)
    assert [f"{w & 0xFFFFFFFF:08x}" for w in words[0].tolist()] == KNOWN[0][2].split()


@pytest.mark.parametrize("by", HERE)
@pytest.mark.parametrize("name", DRAWS)
def test_a_million_draws_have_the_bits_of_the_reference(name, by):
    ids = torch.tensor([0, 1, 2**32 - 1, 2**32 + 7, 2**56 - 1])
    options = {"step": 2**32 - 1, "n": 210_001, "stream": 255}
    assert torch.equal(
        draw(name, 2**64 - 3, ids, by=by, **options), draw(name, -3, ids, by="reference", **options)
    )


@pytest.mark.parametrize("by", HERE)
def test_a_million_bernoulli_draws_are_those_of_the_reference(by):
    ids = torch.arange(4)
    for p in (torch.rand(4, 1), torch.rand(4, 260_001).T.contiguous().T):
        ours, wanted = (draw("bernoulli", p, 5, ids, n=260_001, by=b) for b in (by, "reference"))
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("by", ["reference", *HERE])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 31, 64, 127, 1000])
def test_fewer_numbers_are_the_first_of_more(n, by):
    ids = torch.tensor([9, 4])
    for name in DRAWS:
        assert torch.equal(draw(name, 1, ids, n=n, by=by), draw(name, 1, ids, n=1003, by=by)[:, :n])


@pytest.mark.parametrize("name", DRAWS)
def test_a_sample_does_not_depend_on_its_batch_nor_on_threads(name):
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:257]
    batch = draw(name, 3, ids, n=999)
    for count in (1, 2):
        with with_threads(count):
            assert torch.equal(draw(name, 3, ids, n=999), batch)
            assert torch.equal(draw(name, 3, ids[200:201].clone(), n=999)[0], batch[200])


def test_uniform_is_never_0_and_never_1():
    ends = reference.uniform_from_words(torch.tensor([0, 2**32 - 1]))
    assert ends.tolist() == [2.0**-24, 1 - 2.0**-24]


@pytest.mark.parametrize("by", ["reference", *HERE])
def test_bernoulli_compares_all_32_bits(by):
    ids = torch.arange(3)
    bits = draw("bits", 8, ids, n=5000, by="reference").long() & 0xFFFFFFFF
    for p in (0.0, 2.0**-32, 2.0**-31, 1e-3, 0.5, 1 - 2.0**-32, 1 - 2.0**-33, 1.0):
        assert torch.equal(draw("bernoulli", p, 8, ids, n=5000, by=by), bits < p * 2.0**32)
    word = float(bits[1, 77])
    just_above, just_not = ((word + 1) / 2**32, word / 2**32)
    assert draw("bernoulli", just_above, 8, ids, n=78, by=by)[1, 77]
    assert not draw("bernoulli", just_not, 8, ids, n=78, by=by)[1, 77]


def test_log_exp_and_sincos_are_accurate():
    word = torch.cat([torch.tensor([0, 2**32 - 1]), torch.randint(0, 2**32, (10**6,))])
    u = reference.uniform_from_words(word)
    exact = u.double().log()
    assert float(((reference.log(u) - exact).abs() / exact.abs()).max()) < 2.0**-22
    sine, cosine = reference.sincos_turn(u)
    assert float((sine - (2 * np.pi * u.double()).sin()).abs().max()) < 2.0**-23
    assert float((cosine - (2 * np.pi * u.double()).cos()).abs().max()) < 2.0**-23
    x = -20 * u
    assert float((reference.exp_nonpositive(x) / x.double().exp() - 1).abs().max()) < 2.0**-22


def test_uniform_and_normal_pass_kolmogorov_smirnov_and_moments():
    n, ids = 10**6, torch.tensor([12345])
    u = random.uniform(1, ids, n=n)[0].double().numpy()
    z = random.normal(1, ids, n=n, stream=1)[0].double().numpy()
    assert stats.kstest(u, "uniform").pvalue > FALSE_ALARM
    assert stats.kstest(z, "norm").pvalue > FALSE_ALARM
    limit = stats.norm.isf(FALSE_ALARM / 2)  # in standard errors
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < limit * np.sqrt(variance / n)
    for power in (1, 2, 3):
        mean, variance = 1 / (power + 1), 1 / (2 * power + 1) - 1 / (power + 1) ** 2
        assert abs((u**power).mean() - mean) < limit * np.sqrt(variance / n)


def test_a_biased_generator_would_fail_those_tests():
    z = random.normal(1, torch.tensor([12345]), n=10**6, stream=1)[0].double().numpy()
    assert stats.kstest(1.02 * z, "norm").pvalue < FALSE_ALARM
    assert stats.kstest(z + 0.02, "norm").pvalue < FALSE_ALARM


def test_every_bit_of_a_word_is_fair():
    words = random.bits(7, torch.arange(64), n=16384).view(torch.int32).long().flatten()
    n = len(words)
    for bit in range(32):
        ones = int((words >> bit & 1).sum())
        assert chi_square(np.array([ones, n - ones]), np.array([0.5, 0.5])) > FALSE_ALARM / 32


def correlation_is_noise(a, b):
    n = a.numel()
    r = torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1]
    return abs(float(r)) < stats.norm.isf(FALSE_ALARM / 2) / np.sqrt(n)


@pytest.mark.parametrize("name", ["uniform", "normal"])
def test_elements_samples_steps_streams_and_seeds_are_independent(name):
    f, ids = getattr(random, name), torch.arange(256)
    x = f(1, ids, n=4096)
    for lag in (1, 2, 3, 4, 5, 8, 64):
        assert correlation_is_noise(x[:, :-lag], x[:, lag:])
    assert correlation_is_noise(x[:-1], x[1:])
    for other in (
        f(1, ids, n=4096, step=1),
        f(1, ids, n=4096, stream=1),
        f(2, ids, n=4096),
        f(1, ids + 2**32, n=4096),
        f(1 + 2**32, ids, n=4096),
    ):
        assert correlation_is_noise(x, other)
    assert not correlation_is_noise(x, 0.98 * x + 0.2 * f(9, ids, n=4096))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("n", [1, 4, 7, 130, 1021])
def test_native_kernels_write_all_of_their_memory_and_nothing_else(name, n):
    ids, dtype = torch.arange(3), torch.int32 if name == "bits" else torch.float32
    for isa in native.usable_isas():
        with native.instruction_set(isa), fenced((3, n), dtype) as out:
            getattr(torch.ops.fastgen_native, name)(
                out.view(torch.uint32) if name == "bits" else out, 1, ids, 0, 0
            )
            assert torch.equal(out.view(torch.int32), draw(name, 1, ids, n=n, by="reference"))


def test_seed_none_follows_torch_manual_seed():
    ids = torch.arange(2)
    torch.manual_seed(5)
    first = random.uniform(None, ids, n=8)
    second = random.uniform(None, ids, n=8)
    torch.manual_seed(5)
    assert torch.equal(random.uniform(None, ids, n=8), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("by", ["reference", *HERE])
@pytest.mark.parametrize("name", DRAWS)
def test_out_takes_the_numbers_and_is_returned(name, by):
    ids = torch.tensor([3, 2**40])
    fresh = draw(name, 5, ids, n=130, step=2, by=by)
    # One number off the boundary that wide stores need.
    dtype = torch.uint32 if name == "bits" else torch.float32
    out = torch.zeros(261, dtype=torch.int32)[1:].view(2, 130)
    with running(by):
        assert getattr(random, name)(5, ids, out=out.view(dtype), step=2).data_ptr() == out.data_ptr()
    assert torch.equal(out, fresh)


@pytest.mark.parametrize("name", ["bits", "uniform", "normal"])
def test_results_larger_than_the_caches_have_the_same_bits(name):
    many, n = 9, 2**20 + 3
    whole = draw(name, 5, torch.arange(many), n=n)
    assert torch.equal(whole[7], draw(name, 5, torch.tensor([7]), n=n)[0])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_to_draw_gives_nothing(shape):
    for by in ("reference", *HERE):
        assert draw("normal", 1, torch.arange(shape[0]), n=shape[1], by=by).shape == shape


BAD = {
    "seed": (lambda: random.bits(1.5, torch.arange(2), n=1), "seed is 1.5, wanted an int or None"),
    "seed size": (lambda: random.bits(2**64, torch.arange(2), n=1), "seed is 18446744073709551616, wanted"),
    "ids dtype": (
        lambda: random.bits(1, torch.arange(2.0), n=1),
        "sample_ids is torch.float32, wanted an int64",
    ),
    "ids shape": (
        lambda: random.bits(1, torch.zeros(2, 2).long(), n=1),
        "sample_ids is .*wanted an int64 tensor",
    ),
    "ids negative": (lambda: random.bits(1, torch.tensor([3, -1]), n=1), "sample_ids holds -1, wanted"),
    "ids large": (lambda: random.bits(1, torch.tensor([2**56]), n=1), "sample_ids holds 72057594037927936"),
    "step": (lambda: random.bits(1, torch.arange(2), n=1, step=2**32), "step is 4294967296"),
    "n": (lambda: random.bits(1, torch.arange(2), n=-1), "n is -1, wanted"),
    "stream": (lambda: random.bits(1, torch.arange(2), n=1, stream=256), "stream is 256, wanted 0 to 255"),
    "n bool": (lambda: random.bits(1, torch.arange(2), n=True), "n is True, wanted an int"),
    "n float": (lambda: random.bits(1, torch.arange(2), n=2.5), "n is 2.5, wanted an int"),
    "stream float": (
        lambda: random.bits(1, torch.arange(2), n=1, stream=1.9),
        "stream is 1.9, wanted an int",
    ),
    "step word": (lambda: random.bits(1, torch.arange(2), n=1, step="3"), "step is '3', wanted an int"),
    "p word": (lambda: random.bernoulli("x", 1, torch.arange(2), n=1), "p is 'x', wanted a number or a"),
    "p too wide": (lambda: random.bernoulli(torch.full((2, 5), 0.5), 1, torch.arange(2), n=1), "p has shape"),
    "p too deep": (
        lambda: random.bernoulli(torch.full((1, 2, 1), 0.5), 1, torch.arange(2), n=1),
        "p has shape",
    ),
    "no n": (lambda: random.bits(1, torch.arange(2)), "n is None, wanted an int"),
    "out dtype": (
        lambda: random.normal(1, torch.arange(2), out=torch.zeros(2, 3).double()),
        "out is torch.float64, wanted a torch.float32 tensor",
    ),
    "out shape": (
        lambda: random.normal(1, torch.arange(2), n=4, out=torch.zeros(2, 3)),
        r"out has shape \(2, 3\) on cpu, wanted a contiguous \(2, 4\) on cpu",
    ),
    "out strides": (
        lambda: random.normal(1, torch.arange(2), out=torch.zeros(3, 2).T),
        r"out has shape \(2, 3\) on cpu, wanted a contiguous",
    ),
    "out word": (lambda: random.normal(1, torch.arange(2), out="x"), "n is None, wanted an int"),
    "out gradient": (
        lambda: random.normal(1, torch.arange(2), out=torch.zeros(2, 3, requires_grad=True)),
        "out is torch.float32, wanted a torch.float32 tensor that requires no gradient",
    ),
    "p": (lambda: random.bernoulli(1.5, 1, torch.arange(2), n=1), "p holds 1.5, wanted numbers in"),
    "p nan": (
        lambda: random.bernoulli(float("nan"), 1, torch.arange(2), n=1),
        "p holds nan, wanted numbers in",
    ),
    "p shape": (
        lambda: random.bernoulli(torch.rand(3), 1, torch.arange(2), n=4),
        "p has shape .3,., wanted one",
    ),
    "p dtype": (lambda: random.bernoulli(torch.ones(4).int(), 1, torch.arange(2), n=4), "p is torch.int32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_streams_are_distinct_and_the_kernels_know_them_by_the_same_numbers():
    assert len({int(s) for s in Stream}) == len(Stream)
    header = (ROOT / "csrc/include/fastgen/streams.h").read_text()
    for name, number in re.findall(r"k(\w+)Stream = (\d+)", header):
        word = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
        assert Stream[word] == int(number)


def test_insisting_on_what_cannot_run_says_why():
    with use_backend("cuda"), pytest.raises(RuntimeError, match="cuda runs on GPUs, not on cpu"):
        random.bits(1, torch.arange(2), n=1)
    with pytest.raises(ValueError, match="backend is 'gpu', wanted one of"):
        use_backend("gpu")
    assert all(s.reason for s in backends() if not s.usable)


# Triton: in its interpreter here, and compiled for GPUs that are not here.


def test_triton_launches_on_the_device_of_the_tensors(monkeypatch):
    pytest.importorskip("triton")
    made_current, device_of = [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: made_current.append(x.shape) or device_of(x))
    draw("uniform", 1, torch.arange(3), n=7, by="triton")
    assert made_current == [(3, 7)]


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == 12


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("kind, out", [(0, "i32"), (1, "fp32"), (2, "fp32"), (3, "i1")])
def test_triton_compiles_ahead_of_time(capability, kind, out):
    pytest.importorskip("triton")
    from fastgen.kernels import random as kernels  # noqa: PLC0415

    constants = {"KIND": kind, "STREAM": 19, "BLOCKS": kernels.BLOCKS}
    signature = {
        "out": f"*{out}", "probability": "*fp64", "p_row_stride": "i64", "p_stride": "i64",
        "sample_ids": "*i64", "seed": "i64", "step": "i64", "n": "i64",
        **dict.fromkeys(constants, "constexpr"),
    }  # fmt: skip
    built = compiled(kernels.draw_kernel, signature, constants, capability)
    assert built.asm["cubin"] and f".target sm_{capability}" in built.asm["ptx"]

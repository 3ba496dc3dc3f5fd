"""The Triton kernel of sample_logits: interpreted here, compiled ahead of time for three GPUs."""

import pytest
import torch

from fastgen import use_backend
from fastgen.ops import sample_logits

from .triton_compiler import INTERPRETED, compiled, compiling, interpreted, passed_ahead_of_time


def test_triton_launches_on_the_device_of_the_tensors(monkeypatch):
    pytest.importorskip("triton")
    made_current, device_of = [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: made_current.append(x.shape) or device_of(x))
    with use_backend("triton"):
        sample_logits(torch.zeros(3, 7), seed=1)
    assert made_current == [(3, 7)]


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter is switched off")
@pytest.mark.parametrize("vocabulary", [1, 17, 700])
def test_triton_has_the_bits_of_the_reference(vocabulary):
    pytest.importorskip("triton")
    g = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(8, vocabulary, generator=g)
    logits[4:] = logits[4:].round()  # many ties
    settings = {
        "temperature": torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 2.0, 0.7, 1.0]),
        "top_k": torch.tensor([0, 3, 0, 1, vocabulary // 2 + 1, 0, 9, 0]),
        "top_p": torch.tensor([1.0, 0.5, 0.9, 1.0, 0.8, 0.0, 1.0, 0.3]),
        "min_p": torch.tensor([0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 1.0, 0.001]),
        "typical_p": torch.tensor([1.0, 0.5, 1.0, 1.0, 0.7, 1.0, 0.9, 1.0]),
        "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2,
        "output_tokens": torch.randint(-1, vocabulary, (8, 6), generator=g),
        "logit_bias": torch.randn(vocabulary, generator=g),
    }  # fmt: skip
    with use_backend("reference"):
        wanted = sample_logits(logits, seed=5, step=3, **settings)
    with use_backend("triton"):
        drawn = sample_logits(logits, seed=5, step=3, **settings)
    assert torch.equal(drawn.token, wanted.token) and torch.equal(drawn.log_prob, wanted.log_prob)


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter is switched off")
def test_rows_from_which_nothing_can_be_drawn_are_named():
    pytest.importorskip("triton")
    logits = torch.zeros(3, 20)
    logits[1] = -torch.inf
    with use_backend("triton"):
        with pytest.raises(ValueError, match=r"logits\[1\] has no token above -inf"):
            sample_logits(logits, seed=1, top_p=0.5)
        logits[1, 19] = torch.nan
        with pytest.raises(ValueError, match=r"logits\[1\] holds NaN"):
            sample_logits(logits, seed=1, top_p=0.5)


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == 3


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_triton_compiles_ahead_of_time(capability):
    pytest.importorskip("triton")
    from fastgen.kernels import sample_logits as kernels  # noqa: PLC0415

    constants = {"STREAM": 30, "BLOCK": kernels.BLOCK}
    signature = {
        "raw": "*fp32", "z": "*fp32", "settings": "*fp64", "sample_ids": "*i64", "steps": "*i64",
        "tokens": "*i64", "log_probs": "*fp32", "n": "i32", "seed": "i64",
        **dict.fromkeys(constants, "constexpr"),
    }  # fmt: skip
    built = compiled(kernels.sample_kernel, signature, constants, capability, num_warps=kernels.WARPS)
    assert built.asm["cubin"] and built.metadata.shared <= 96 * 1024

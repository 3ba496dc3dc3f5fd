"""The op rbm_gibbs: what it refuses, what memory it needs, and what the dispatcher knows of it."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from fastgen import use_backend
from fastgen.bench import peak_memory
from fastgen.ops import rbm_gibbs

from .test_rbm_gibbs import HERE, make


def change(**changes):
    v, weight, v_bias, h_bias = make(4, 9, 7)
    h = torch.zeros(4, 7, dtype=torch.uint8)
    base = {"v": v, "h": h, "weight": weight, "v_bias": v_bias, "h_bias": h_bias, "seed": 0}
    return {**base, **{name: value(base) if callable(value) else value for name, value in changes.items()}}


def at(name, value):
    def changed(base):
        tensor = base[name].clone()
        tensor.view(-1)[1] = value
        return tensor

    return changed


BAD = [
    ({"v": at("v", 2)}, ValueError, "v holds 2"),
    ({"h": at("h", 255)}, ValueError, "h holds 255"),
    ({"v": lambda b: b["v"].float() * 0.5}, ValueError, "v holds 0.5"),
    ({"v": lambda b: b["v"].to(torch.int8) * -1}, ValueError, "v holds -1"),
    ({"v": lambda b: b["v"].long()}, TypeError, "v is torch.int64"),
    ({"v": [1, 0]}, TypeError, "v is list"),
    ({"v": lambda b: b["v"][:, :8]}, ValueError, "v has shape"),
    ({"h": lambda b: b["h"][:3]}, ValueError, "h has 3 chains"),
    ({"h": None, "first_step": 1}, ValueError, "h is None"),
    ({"h": None, "half_steps": 0}, ValueError, "h is None"),
    (
        {"weight": torch.zeros(0, 7), "v": torch.zeros(4, 0), "v_bias": torch.zeros(0)},
        ValueError,
        "weight has shape",
    ),
    (
        {"weight": torch.zeros(9, 0), "h": torch.zeros(4, 0), "h_bias": torch.zeros(0)},
        ValueError,
        "weight has shape",
    ),
    ({"weight": lambda b: b["weight"].half()}, TypeError, "weight is torch.float16"),
    ({"weight": lambda b: b["weight"].to("meta")}, ValueError, "v_bias is on cpu, wanted meta"),
    ({"weight": at("weight", float("nan"))}, ValueError, "weight holds nan"),
    ({"weight": at("weight", float("-inf"))}, ValueError, "weight holds -inf"),
    ({"v_bias": at("v_bias", float("inf"))}, ValueError, "v_bias holds inf"),
    ({"h_bias": lambda b: b["v_bias"]}, ValueError, "h_bias has shape"),
    ({"h_bias": lambda b: b["h_bias"].long()}, TypeError, "h_bias is torch.int64"),
    ({"beta": float("nan")}, ValueError, "beta holds nan"),
    ({"beta": -0.5}, ValueError, "beta holds -0.5"),
    ({"beta": torch.ones(3)}, ValueError, "beta has shape"),
    ({"beta": torch.ones(4).long()}, TypeError, "beta is torch.int64"),
    ({"visible": "potts"}, ValueError, "visible is 'potts'"),
    ({"visible": "gaussian"}, TypeError, "v is torch.uint8"),
    ({"visible": "gaussian", "v": torch.ones(4, 9), "beta": 0.0}, ValueError, "beta holds 0.0"),
    ({"visible": "gaussian", "v": torch.full((4, 9), float("nan"))}, ValueError, "v holds nan"),
    ({"clamp_mask": torch.ones(4).bool()}, ValueError, "clamp_mask has shape"),
    ({"clamp_mask": torch.ones(9)}, TypeError, "clamp_mask is torch.float32"),
    ({"clamp_values": torch.ones(9)}, ValueError, "clamp_values came without"),
    (
        {"clamp_mask": torch.ones(9).bool(), "clamp_values": torch.ones(7)},
        ValueError,
        "clamp_values has shape",
    ),
    ({"clamp_mask": torch.ones(9).bool(), "clamp_values": torch.full((9,), 0.5)}, ValueError, "v holds 0.5"),
    (
        {"clamp_mask": torch.ones(9).bool(), "clamp_values": torch.ones(9, dtype=torch.complex64)},
        TypeError,
        "clamp_values is torch.complex64",
    ),
    ({"weight": lambda b: b["weight"].to_sparse()}, TypeError, "weight is torch.sparse_coo of torch.float32"),
    ({"v": lambda b: b["v"].to_sparse()}, TypeError, "v is torch.sparse_coo of torch.uint8"),
    ({"probabilities": 1}, TypeError, "probabilities is 1, wanted True or False"),
    ({"beta": "0.5"}, TypeError, "beta is str, wanted a number"),
    ({"beta": None}, TypeError, "beta is NoneType, wanted a number"),
    ({"half_steps": -1}, ValueError, "half_steps is -1"),
    ({"half_steps": 2.0}, TypeError, "half_steps is 2.0, wanted an int of at least 0"),
    ({"first_step": 2**32 - 1}, ValueError, "first_step is 4294967295"),
    ({"first_step": -1}, ValueError, "first_step is -1"),
    ({"sample_ids": torch.arange(3)}, ValueError, "sample_ids has shape"),
    ({"sample_ids": torch.tensor([0, 1, 2, -3])}, ValueError, "sample_ids holds -3"),
    ({"seed": 0.5}, TypeError, "seed is 0.5"),
]


@pytest.mark.parametrize("changes, error, message", BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_refused_in_one_sentence(changes, error, message):
    arguments = change(**changes)
    positional = [arguments.pop(name) for name in ("v", "h", "weight", "v_bias", "h_bias")]
    with pytest.raises(error, match=message.replace("(", r"\(")):
        rbm_gibbs(*positional, **arguments)


def test_native_refuses_float64_and_says_who_takes_it():
    v, weight, v_bias, h_bias = make(4, 9, 7)
    with use_backend("native"), pytest.raises(TypeError, match=r"weight is torch\.float64"):
        rbm_gibbs(v, None, weight.double(), v_bias, h_bias, seed=0)


@pytest.mark.parametrize("shape", [(9, 1), (4, 1), (1, 9), (36,), (2, 2, 9), (4, 9, 1), ()])
def test_the_registered_op_refuses_masks_of_other_shapes(shape):
    v, weight, v_bias, h_bias = make(4, 9, 7)
    mask, h = torch.zeros(shape, dtype=torch.bool), torch.zeros(4, 7, dtype=torch.uint8)
    rest = (torch.ones(4), mask, 2, False, False, 0, torch.arange(4), 0)
    with use_backend("native"), pytest.raises(RuntimeError, match="bad clamp_mask"):
        torch.ops.fastgen.rbm_gibbs(v, h, weight, v_bias, h_bias, *rest)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros((), dtype=torch.uint8)}, "bad v, v_mean or h_mean"),
        ({2: torch.zeros(4, 9)}, "bad v"),
        ({3: torch.zeros(4, 6, dtype=torch.uint8)}, "bad h"),
        ({4: torch.zeros(())}, "bad v, v_mean or h_mean"),
        ({6: torch.zeros(9, 0)}, "bad weight"),
        ({6: torch.zeros(9, 14)[:, ::2]}, "bad layout of weight"),
        ({6: torch.zeros(14, 9).T[:, ::2]}, "bad layout of weight"),
        ({11: -2}, "bad steps"),
        ({15: -1}, "bad steps"),
        ({15: 2**32 - 1}, "bad steps"),
        ({11: 2**63 - 1}, "bad steps"),
    ],
)
def test_the_binding_guards_the_memory(change, message):
    v, weight, v_bias, h_bias = make(4, 9, 7)
    h, no = torch.zeros(4, 7, dtype=torch.uint8), torch.zeros(0, 9)
    model = [weight, v_bias, h_bias, torch.ones(4), None]
    arguments = [v, h, v.clone(), h.clone(), no, no, *model, 2, False, 0, torch.arange(4), 0, 19, 20]
    torch.ops.fastgen_native.rbm_gibbs(*arguments)
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.rbm_gibbs(*arguments)


@pytest.mark.skipif(not peak_memory.SUPPORTED, reason="needs Linux")
def test_peak_memory_is_the_result_and_bytes():
    """16384 chains of 64 visible and 2048 hidden units, float32: 4 bytes a unit of results, 2 of states."""
    script = """
import torch
from fastgen.bench.peak_memory import peak_mib
from fastgen.ops import rbm_gibbs
v, model = torch.ones(16384, 64), (torch.zeros(64, 2048), torch.zeros(64), torch.zeros(2048))
print(peak_mib(lambda: rbm_gibbs(v, None, *model, seed=1)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    units = 16384 * (64 + 2048)
    assert float(run.stdout) * 2**20 <= 6.5 * units


# The dispatcher.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("gaussian", [False, True])
def test_opcheck(backend, gaussian):
    v, weight, v_bias, h_bias = make(3, 9, 7)
    mask = torch.zeros(9, dtype=torch.bool)
    start, h, ids = (v.float() if gaussian else v), torch.zeros(3, 7), torch.arange(3)
    arguments = (start, h, weight, v_bias, h_bias, torch.ones(3), mask, 3, gaussian, True, 1, ids, 0)
    with use_backend(backend):
        torch.library.opcheck(torch.ops.fastgen.rbm_gibbs.default, arguments)


def test_compiles_whole():
    v, weight, v_bias, h_bias = make(3, 9, 7)

    def step(v):
        return rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=4, beta=0.5, probabilities=True, seed=2)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(v)
    assert all(torch.equal(a, b) for a, b in zip(step(v), compiled, strict=True))


@pytest.mark.parametrize(
    "mode",
    [nullcontext, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["plain", "inference", "autocast"],
)
def test_modes_change_nothing(mode):
    v, weight, v_bias, h_bias = make(3, 9, 7)
    expected = rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=4, seed=2)
    with mode():
        end = rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=4, seed=2)
    assert torch.equal(end.v, expected.v) and torch.equal(end.h, expected.h)


def test_vmap_says_why_not():
    v, weight, v_bias, h_bias = make(3, 9, 7)
    with pytest.raises(NotImplementedError, match="batched already"):
        torch.func.vmap(lambda w: rbm_gibbs(v, None, w, v_bias, h_bias, seed=1).v)(weight.expand(2, 9, 7))

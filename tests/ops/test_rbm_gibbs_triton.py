"""The Triton kernel of rbm_gibbs: interpreted here, compiled ahead of time for three GPUs."""

import pytest
import torch

from fastgen import use_backend
from fastgen.ops import rbm_gibbs

from .triton_compiler import compiled, compiling, interpreted, passed_ahead_of_time


def test_triton_launches_on_the_device_of_the_tensors(monkeypatch):
    pytest.importorskip("triton")
    v, weight = torch.zeros(3, 7, dtype=torch.uint8), torch.zeros(7, 5)
    v_bias, h_bias = torch.zeros(7), torch.zeros(5)
    made_current, device_of = [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: made_current.append(x.shape) or device_of(x))
    with use_backend("triton"):
        rbm_gibbs(v, None, weight, v_bias, h_bias, half_steps=2, seed=1)
    assert made_current == [(3, 7)] * 2


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == 9


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("half_step, dtype", [("hidden", "fp32"), ("visible", "bf16"), ("gaussian", "fp32")])
def test_triton_compiles_ahead_of_time(capability, half_step, dtype):
    pytest.importorskip("triton")
    from fastgen.kernels import rbm_gibbs as kernels  # noqa: PLC0415

    constants = {
        "STREAM": 19, "GAUSSIAN": half_step == "gaussian", "CLAMPED": half_step != "hidden", "MEANS": True,
        "WIDEN": False, "CHAINS": kernels.CHAINS, "UNITS": kernels.UNITS, "INPUTS": kernels.INPUTS,
    }  # fmt: skip
    signature = {
        "inputs": "*u8", "outputs": "*fp32" if half_step == "gaussian" else "*u8", "means": "*fp32",
        "weight": f"*{dtype}", "bias": "*fp32", "beta": "*fp32", "mask": "*u8", "sample_ids": "*i64",
        "chains": "i32", "n_inputs": "i32", "n_outputs": "i32", "input_stride": "i32", "output_stride": "i32",
        "mask_stride": "i32", "step": "i64", "seed": "i64", **dict.fromkeys(constants, "constexpr"),
    }  # fmt: skip
    built = compiled(kernels.half_step_kernel, signature, constants, capability)
    assert built.asm["cubin"] and ("mma" in built.asm["ptx"])
    assert built.metadata.shared <= 96 * 1024

"""Block Gibbs sampling of an RBM on a GPU: a half step is one product whose epilogue draws.

The tiles are the same for every batch and the inputs are added in the same order, so a chain's bits do not
depend on the chains beside it. Probabilities never reach memory unless they are asked for.
"""

import torch
import triton
import triton.language as tl

from .philox import exp_nonpositive, normal_from_words, stream_words

CHAINS, UNITS, INPUTS = 32, 64, 32  # a tile of outputs, and the inputs it adds at a time


@triton.jit
def in_order(w0, w1, w2, w3, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Four (ROWS, COLUMNS / 4) tensors as one (ROWS, COLUMNS), the four of a block side by side."""
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, COLUMNS))


@triton.jit
def draw_states(field, words):
    """States of binary units, 1 with probability 1 / (1 + exp(-field)); see fastgen.reference.rbm_gibbs."""
    likely_on = field >= 0.0
    e = exp_nonpositive(-tl.abs(field))
    r = (tl.where(likely_on, ~words, words) >> 1).to(tl.int32)
    unlikely = (r.to(tl.float32) + 0.5) * (e + 1.0) < e * 2147483648.0
    return likely_on ^ unlikely, e


@triton.jit(do_not_specialize=["step", "seed"])
def half_step_kernel(
    inputs,
    outputs,
    means,
    weight,
    bias,
    beta,
    mask,
    sample_ids,
    chains,
    n_inputs,
    n_outputs,
    input_stride,
    output_stride,
    mask_stride,
    step,
    seed,
    STREAM: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    CLAMPED: tl.constexpr,
    MEANS: tl.constexpr,
    WIDEN: tl.constexpr,
    CHAINS: tl.constexpr,
    UNITS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """One layer from the other; weight(input, output) is at input * input_stride + output * output_stride."""
    chain = tl.program_id(0).to(tl.int64) * CHAINS + tl.arange(0, CHAINS)
    first = tl.program_id(1) * UNITS
    unit = first + tl.arange(0, UNITS)
    here, there = chain < chains, unit < n_outputs
    total = tl.zeros((CHAINS, UNITS), tl.float32)
    for start in range(0, n_inputs, INPUTS):
        i = start + tl.arange(0, INPUTS)
        inside = i < n_inputs
        state = tl.load(inputs + chain[:, None] * n_inputs + i, mask=here[:, None] & inside, other=0)
        place = i[:, None].to(tl.int64) * input_stride + unit.to(tl.int64) * output_stride
        w = tl.load(weight + place, mask=inside[:, None] & there, other=0.0)
        if WIDEN or state.dtype == tl.float32:
            w = w.to(tl.float32)
        # Ones and zeros are exact in every format; three passes of TF32 keep float32 weights whole.
        total = tl.dot(state.to(w.dtype), w, total, input_precision="tf32x3")
    mean = total + tl.load(bias + unit, mask=there, other=0.0)
    b = tl.load(beta + chain, mask=here, other=1.0)[:, None]
    block = (first // 4 + tl.arange(0, UNITS // 4)).to(tl.int64)[None, :]
    sample_id = tl.load(sample_ids + chain, mask=here, other=0)[:, None]
    w0, w1, w2, w3 = stream_words(block, step, sample_id, STREAM, seed)
    if GAUSSIAN:
        w0, w1 = normal_from_words(w0, w1)
        w2, w3 = normal_from_words(w2, w3)
        new = mean + in_order(w0, w1, w2, w3, CHAINS, UNITS) / tl.sqrt_rn(b)
    else:
        field = mean * b
        new, e = draw_states(field, in_order(w0, w1, w2, w3, CHAINS, UNITS))
        mean = tl.where(field >= 0.0, 1.0, e) / (e + 1.0)
    place = chain[:, None] * n_outputs + unit
    write = here[:, None] & there
    if MEANS:
        tl.store(means + place, mean, mask=write)
    if CLAMPED:
        held = tl.load(mask + chain[:, None] * mask_stride + unit, mask=write, other=1)
        write = write & (held == 0)
    tl.store(outputs + place, new.to(outputs.dtype.element_ty), mask=write)


def rbm_gibbs(
    v, h, weight, v_bias, h_bias, beta, clamp_mask, half_steps, gaussian, probabilities, seed, sample_ids,
    first_step, draw_stream, noise_stream,
):  # fmt: skip
    """See `fastgen.ops.rbm_gibbs`; means that are not asked for, or were not computed, have no rows."""
    v, h, chains = v.clone(), h.clone(), len(v)
    v_mean, h_mean = v_bias.new_empty((0, v.shape[1])), h_bias.new_empty((0, h.shape[1]))
    mask = (
        torch.zeros(1, dtype=torch.uint8, device=v.device)
        if clamp_mask is None
        else clamp_mask.view(torch.uint8)
    )
    for step in range(first_step, first_step + (half_steps if chains else 0)):
        to_v = step % 2 == 1
        source, target, bias = (h, v, v_bias) if to_v else (v, h, h_bias)
        means = bias.new_empty((chains if probabilities else 0, target.shape[1]))
        with torch.cuda.device_of(v):  # Triton launches on the current device
            half_step_kernel[triton.cdiv(chains, CHAINS), triton.cdiv(target.shape[1], UNITS)](
                source, target, means, weight, bias, beta, mask, sample_ids,
                chains, source.shape[1], target.shape[1],
                weight.stride(1 if to_v else 0), weight.stride(0 if to_v else 1),
                mask.shape[1] if mask.dim() == 2 else 0, step, seed,
                STREAM=noise_stream if to_v and gaussian else draw_stream,
                GAUSSIAN=to_v and gaussian, CLAMPED=to_v and clamp_mask is not None, MEANS=probabilities,
                # Triton's interpreter multiplies the raw bits of bfloat16. The products are exact either way.
                WIDEN=triton.knobs.runtime.interpret,
                CHAINS=CHAINS, UNITS=UNITS, INPUTS=INPUTS, enable_fp_fusion=False,
            )  # fmt: skip
        v_mean, h_mean = (means, h_mean) if to_v else (v_mean, means)
    return v, h, v_mean, h_mean

"""Block Gibbs sampling of restricted Boltzmann machines of the size of handwritten digits.

The parameters are random with the statistics of a machine trained on digits: small weights, visible biases
that leave most pixels dark, hidden biases that leave most units off. One step is two half steps.

What 256 chains of 784 x 512 can reach at most on the two AVX-512 cores of docs/benchmarks.md: a step has
104,448 passes of a chain over a word of inputs and 64 outputs. Of a word's 8 groups of four inputs only those
with a unit on are looked up, here 3.8 of the visible and 6.0 of the hidden units: 23.6 loads of 512 bits a
pass (19.6 from tables, 4 of sums) and 4 stores, where all groups would need 36 loads. A load from the first
cache took 0.31 ns, a store beside loads 0.25 ns, which makes 0.87 ms a step on one core; 0.93 were measured.
Drawing 331,776 words at 2.1 a ns takes 0.16 ms; the draws as a whole took 0.21, building tables 0.11, listing
groups 0.03. In all a step took 1.36 ms on one core, and a call 1.0 ms besides: 0.2 in Python and its checks,
the rest for packing. Ten steps took 8.0 to 8.3 ms on two cores, 48 with `torch.bernoulli` in eager PyTorch
and 35 with a comparison. Loads, stores and draws alone would take 0.51 ms a step on two cores: ratios of 9
and 7 if nothing else took any time. With sums and draws at their counts, tables, lists and the call as they
are, ten steps would take 6.9 ms: ratios of 7.0 and 5.1.
"""

from functools import partial

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs, needs_compiler
from fastgen.bench.matching import rows_equal, statistical
from fastgen.bench.peers import sklearn_rbm, torch_rbm

State = tuple[Tensor, Tensor | None]
DIGITS = (784, 512)
SMALL = (24, 16)


def _inputs(
    chains: int,
    units: tuple[int, int],
    steps: int,
    device: str,
    *,
    dtype: torch.dtype = torch.float32,
    clamped: bool = False,
    seed: int = 0,
) -> Inputs:
    visible, hidden = units
    generator = torch.Generator().manual_seed(11)
    weight = (visible**-0.5 * torch.randn(visible, hidden, generator=generator)).to(dtype)
    inputs = {
        "weight": weight,
        "v_bias": 1.5 * torch.randn(visible, generator=generator) - 2.5,
        "h_bias": 0.5 * torch.randn(hidden, generator=generator) - 1.0,
        "v": (torch.rand(chains, visible, generator=generator) < 0.2).float(),
        "h": torch.zeros(chains, hidden),
    }
    if clamped:
        inputs["clamp_mask"] = torch.arange(visible) < visible // 2
        inputs["clamp_values"] = inputs["v"]
    return {name: x.to(device) for name, x in inputs.items()} | {"half_steps": 2 * steps, "seed": seed}


def _fastgen(inputs: Inputs) -> Call:
    return lambda: fastgen.ops.rbm_gibbs(**inputs)[:2]


def _reference(inputs: Inputs) -> Call:
    def run() -> State:
        with fastgen.use_backend("reference"):
            return fastgen.ops.rbm_gibbs(**inputs)[:2]

    return run


def _accelerated(inputs: Inputs) -> Call:
    run = sklearn_rbm.build(inputs, accelerate=True)
    return lambda: (torch.from_numpy(run()), None)


def _peers(inputs: Inputs, *, accelerated: bool, scikit_learn: bool) -> tuple[Peer, ...]:
    """Return the peers of a case; outputs are compared by the free energy at the parameters of `inputs`."""
    weight, v_bias, h_bias = (inputs[name].float() for name in ("weight", "v_bias", "h_bias"))

    def free_energy(state: State) -> Tensor:
        v = state[0].float().cpu()
        return -(v @ v_bias) - torch.nn.functional.softplus(v @ weight + h_bias).sum(1)

    same_visible = statistical(visible=lambda state: state[0].float().mean(1), free_energy=free_energy)
    same = statistical(
        visible=lambda state: state[0].float().mean(1),
        hidden=lambda state: state[1].float().mean(1),
        free_energy=free_energy,
    )
    peers = (
        Peer("reference", _reference, rows_equal(0.95)),
        Peer("eager bernoulli", partial(torch_rbm.build, draw=torch_rbm.by_bernoulli), same),
        Peer("eager comparison", torch_rbm.build, same),
        Peer("torch.compile", partial(torch_rbm.build, compile=True), same, missing=needs_compiler),
    )
    sklearn = Peer("scikit-learn", sklearn_rbm.build, same_visible, sklearn_rbm.unpack, needs("sklearn"))
    if accelerated:
        return (sklearn,)
    return (*peers, sklearn) if scikit_learn else peers


def _case(
    name: str,
    chains: int,
    units: tuple[int, int],
    steps: int,
    *,
    dtype: torch.dtype = torch.float32,
    clamped: bool = False,
    accelerated: bool = False,
    quick: bool = False,
) -> Case:
    """Return the case of the op or, `accelerated`, of scikit-learn's estimator, called once a step."""
    visible, hidden = units
    plain = dtype == torch.float32 and not clamped
    inputs = partial(_inputs, chains, units, dtype=dtype, clamped=clamped)
    return Case(
        op="rbm_gibbs",
        name=name,
        inputs=partial(inputs, steps),
        fastgen=_accelerated if accelerated else _fastgen,
        peers=_peers(inputs(steps, "cpu"), accelerated=accelerated, scikit_learn=plain),
        work=Work(
            items=chains * (visible + hidden) * steps,
            item="updates",
            flops=4 * chains * visible * hidden * steps,
            draws=chains * (visible + hidden) * steps,
        ),
        quick=quick,
        # One chain has no spread: compare 64 short runs of one chain, each with a seed of its own.
        checks=None
        if chains > 1
        else lambda device: [inputs(min(steps, 20), device, seed=seed) for seed in range(64)],
    )


CASES = (
    _case("B 256, 784x512, 10 steps", 256, DIGITS, 10),
    _case("B 1, 784x512, 1000 steps", 1, DIGITS, 1000),
    _case("B 256, 784x512, 10 steps bf16 weights", 256, DIGITS, 10, dtype=torch.bfloat16),
    _case("B 256, 784x512, 10 steps half clamped", 256, DIGITS, 10, clamped=True),
    _case("accelerated estimator B 256, 784x512, 10 calls", 256, DIGITS, 10, accelerated=True),
    _case("B 1024, 24x16, 4 steps", 1024, SMALL, 4, quick=True),
    _case("B 1, 24x16, 5 steps", 1, SMALL, 5, quick=True),
    _case("B 1024, 24x16, 4 steps bf16 weights", 1024, SMALL, 4, dtype=torch.bfloat16, quick=True),
    _case("B 1024, 24x16, 4 steps half clamped", 1024, SMALL, 4, clamped=True, quick=True),
)

"""The Ising model in thrml (JAX): two colour blocks, all chains in one `vmap`, the whole run in one `jit`.

Built once a lattice: the graph and the program take thrml seconds, which is not what is timed.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.bench.case import Call, Inputs


def build(inputs: Inputs) -> Call:
    """Return the run of `inputs["sweeps"]` warm-up sweeps of `sample_states` from `inputs["spins"]`."""
    import jax  # noqa: PLC0415 (an optional extra)
    import jax.numpy as jnp  # noqa: PLC0415
    from thrml import SamplingSchedule, sample_states  # noqa: PLC0415

    spins = inputs["spins"].cpu().numpy() > 0
    chains, height, width = spins.shape
    program, blocks = _program(height, width, inputs["beta"])
    schedule = SamplingSchedule(n_warmup=inputs["sweeps"], n_samples=1, steps_per_sample=1)

    def one_chain(key: Any, state: list[Any]) -> list[Any]:
        return sample_states(key, program, schedule, state, [], blocks)

    run = jax.jit(jax.vmap(one_chain))
    keys = jax.random.split(jax.random.key(inputs["seed"]), chains)
    start = [jnp.asarray(spins[:, colour]) for colour in _colours(height, width)]
    jax.block_until_ready(run(keys, start))  # compiles
    return lambda: (jax.block_until_ready(run(keys, start)), (height, width))


def unpack(output: tuple[list[Any], tuple[int, int]]) -> Tensor:
    """Return thrml's two colour blocks, (B, 1, sites) bool each, as (B, H, W) spins in int8."""
    blocks, (height, width) = output
    spins = np.empty((len(blocks[0]), height, width), dtype=np.int8)
    for colour, block in zip(_colours(height, width), blocks, strict=True):
        spins[:, colour] = 2 * np.asarray(block)[:, 0].astype(np.int8) - 1
    return torch.from_numpy(spins)


def _colours(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    even = (np.arange(height)[:, None] + np.arange(width)) % 2 == 0
    return even, ~even


def _program(height: int, width: int, beta: float) -> tuple[Any, list[Any]]:
    """Return thrml's program for a periodic lattice with coupling 1 and no field, and its colour blocks."""
    import jax.numpy as jnp  # noqa: PLC0415
    from thrml import Block, SpinNode  # noqa: PLC0415
    from thrml.models import IsingEBM, IsingSamplingProgram  # noqa: PLC0415

    sites = np.array([SpinNode() for _ in range(height * width)]).reshape(height, width)
    bonds = [*zip(sites.flat, np.roll(sites, -1, 0).flat, strict=True)]
    bonds += [*zip(sites.flat, np.roll(sites, -1, 1).flat, strict=True)]
    energy = IsingEBM([*sites.flat], bonds, jnp.zeros(sites.size), jnp.ones(len(bonds)), jnp.asarray(beta))
    blocks: list[Any] = [Block([*sites[colour]]) for colour in _colours(height, width)]
    return IsingSamplingProgram(energy, blocks, []), blocks

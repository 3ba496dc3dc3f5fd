"""Every kernel under the address and the thread sanitizer: quiet, and with the reference's bits."""

import numpy as np
import pytest
import torch

from fastgen.reference import ising, random

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("kind", ["address", "thread"])]
ORDERS = ["fwd", "deep"]


def output(run_program, kind, *arguments, **settings):
    done = run_program(kind, "run_kernels", *arguments, **settings)
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()[-3000:]
    return done.stdout


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("draw", ["bits", "uniform", "normal", "bernoulli"])
@pytest.mark.parametrize("n", [3, 258])
def test_draws(run_program, kind, draw, n, order):
    seed, step, stream, ids = 2**62 + 12345, 6, 3, [0, 2**41, 17]
    raw = output(run_program, kind, draw, seed, step, stream, n, *ids, order=order)
    leading = (torch.arange(n, dtype=torch.float64).expand(3, n) / n,) if draw == "bernoulli" else ()
    expected = getattr(random, draw)(*leading, seed, torch.tensor(ids), step, n, stream)
    assert raw == np.ascontiguousarray(expected.numpy()).tobytes()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shared_kb", ["227", "0"], ids=["shared_memory", "device_memory"])
@pytest.mark.parametrize("metropolis", [0, 1], ids=["heat_bath", "metropolis"])
@pytest.mark.parametrize("shape,periodic", [((10, 130), 1), ((9, 67), 0)])
def test_ising(run_program, kind, shape, periodic, metropolis, shared_kb, order):
    chains, sweeps, seed, ids = 2, 2, 77, [5, 2**33]
    spins = torch.randint(0, 2, (chains, *shape), generator=torch.Generator().manual_seed(3)) * 2 - 1
    beta, field = (
        torch.tensor([0.44, 1.2], dtype=torch.float64),
        torch.tensor([0.1, 0.0], dtype=torch.float64),
    )
    thresholds = ising.thresholds(beta, field, 1.0, bool(metropolis))
    raw = output(
        run_program,
        kind,
        *("ising", seed, 4, *shape, periodic, metropolis, sweeps, *ids),
        stdin=thresholds.numpy().tobytes() + spins.to(torch.int8).numpy().tobytes(),
        shared_kb=shared_kb,
        order=order,
    )
    expected = ising.ising(
        spins, beta, field, 1.0, bool(periodic), bool(metropolis), sweeps, seed, torch.tensor(ids), 4, True
    )
    assert raw == b"".join(part.numpy().tobytes() for part in expected)

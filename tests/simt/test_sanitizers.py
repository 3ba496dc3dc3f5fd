"""Every kernel under the address and the thread sanitizer: quiet, and with the reference's bits."""

import numpy as np
import pytest
import torch

from fastgen.reference import random as reference

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("kind", ["address", "thread"])]
ORDERS = ["fwd", "deep"]


def output(run_program, kind, *arguments, order):
    done = run_program(kind, "run_kernels", *arguments, order=order)
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()[-3000:]
    return done.stdout


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("draw", ["bits", "uniform", "normal", "bernoulli"])
@pytest.mark.parametrize("n", [3, 260])
def test_draws(run_program, kind, draw, n, order):
    seed, step, stream, ids = 2**62 + 12345, 6, 3, [0, 2**41, 17]
    raw = output(run_program, kind, draw, seed, step, stream, n, *ids, order=order)
    leading = (torch.arange(n, dtype=torch.float64).expand(3, n) / n,) if draw == "bernoulli" else ()
    expected = getattr(reference, draw)(*leading, seed, torch.tensor(ids), step, n, stream)
    assert raw == np.ascontiguousarray(expected.numpy()).tobytes()

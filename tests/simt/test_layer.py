"""The layer itself: every seeded bug is reported by the builds that should, correct kernels are clean."""

from pathlib import Path

import numpy as np
import pytest

# What each build must say of a bug; a build that is not named need not see it.
RACE, BOUNDS = "ThreadSanitizer: data race", "AddressSanitizer: heap-buffer-overflow"
MESSAGES = {
    "tree_no_barrier": {"thread": RACE},
    "tree_out_of_bounds": {"address": BOUNDS, "thread": RACE},
    "tree_partial_barrier": dict.fromkeys(("plain", "address", "thread"), "divergent __syncthreads"),
    "tree_two_barriers": dict.fromkeys(("plain", "address", "thread"), "divergent __syncthreads"),
    "tile_no_barrier": {"thread": RACE},
    "warp_no_syncwarp": {"thread": RACE},
    "last_block_no_fence": {"thread": RACE},
    "global_out_of_bounds": {"address": BOUNDS},
    "misaligned_load": {"address": "misaligned address"},
    "index_overflow": {"address": "signed integer overflow"},
    "block_race": {"thread": RACE},
    "thread_race": {"thread": RACE},
    "read_beside_atomic": {"thread": RACE},
    "lane_outside_mask": dict.fromkeys(("plain", "address", "thread"), "is not in its own mask"),
    "shuffle_from_outside": dict.fromkeys(("plain", "address", "thread"), "outside its mask"),
    "warp_divergence": dict.fromkeys(("plain", "address", "thread"), "divergent warp operation"),
    "half_warp_deadlock": dict.fromkeys(("plain", "address", "thread"), "deadlock"),
}
ORDERS = ["fwd", "rev", "deep", "7"]
# What the plain build shows by a wrong result: the correct kernel beside it, and the orders that show it.
WRONG_RESULTS = {
    "tree_no_barrier": ("tree_sum", ORDERS),
    "tree_uninitialised": ("tree_sum", ORDERS),
    "tile_no_barrier": ("tile", ["deep"]),
    "warp_no_syncwarp": ("warp_exchange", ORDERS),
    "async_no_wait": ("async_tile", ORDERS),
}


def _correct() -> dict[str, np.ndarray]:
    """What the correct kernels write, worked out here; the input is i % 16 for i < 100, two blocks of 64."""
    x = np.arange(100.0) % 16
    t = np.arange(64)
    last_block, spin, early, operations = (np.zeros(64) for _ in range(4))
    last_block[:4] = np.array(2, np.int32).view(np.float32), 3, 1, 2
    one = np.array(1, np.int32).view(np.float32)
    spin[:4] = one, 5, one, 5
    early[:40] = 1
    operations[1] = 128  # element 0 counts failures, element 1 the threads that checked
    return {
        "tree_sum": np.concatenate([[x.sum()], np.zeros(63)]),
        "tile": sum(x[((t + 40) % 64 + k) % 100] for k in range(3)),
        "warp_exchange": (t ^ 1).astype(float),
        "last_block": last_block,
        "async_tile": 3 * x[4 * ((t + 7) % 64 // 4)],
        "early_return": early,
        "spin_on_flag": spin,
        "warp_operations": operations,
    }


CORRECT = _correct()


def _values(stdout: bytes) -> np.ndarray:
    return np.array(stdout.split(), dtype=float)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", CORRECT)
def test_correct_kernel(run_program, kernel, order):
    done = run_program("plain", "seeded_bugs", kernel, order=order)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(_values(done.stdout), CORRECT[kernel], rtol=1e-5)


@pytest.mark.parametrize("kernel,order", [(k, o) for k, (_, orders) in WRONG_RESULTS.items() for o in orders])
def test_bug_shows_in_the_result(run_program, kernel, order):
    done = run_program("plain", "seeded_bugs", kernel, order=order)
    assert done.returncode == 0, done.stderr
    assert not np.allclose(_values(done.stdout), CORRECT[WRONG_RESULTS[kernel][0]])


def _reported(run_program, kind, kernel, message):
    done = run_program(kind, "seeded_bugs", kernel)
    assert done.returncode != 0
    assert message in done.stderr.decode()
    if message in (RACE, BOUNDS):
        assert "seeded_bugs.cu:" in done.stderr.decode()


@pytest.mark.parametrize("kernel", [k for k, builds in MESSAGES.items() if "plain" in builds])
def test_bug_is_reported(run_program, kernel):
    _reported(run_program, "plain", kernel, MESSAGES[kernel]["plain"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address", "thread"])
@pytest.mark.parametrize("kernel", CORRECT)
def test_sanitizer_is_quiet_about_a_correct_kernel(run_program, kind, kernel):
    for order in ORDERS:
        done = run_program(kind, "seeded_bugs", kernel, order=order)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        assert done.stderr == b""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel,kind", [(k, b) for k, builds in MESSAGES.items() for b in builds if b != "plain"]
)
def test_sanitizer_reports_a_bug(run_program, kernel, kind):
    _reported(run_program, kind, kernel, MESSAGES[kernel][kind])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", CORRECT)
def test_correct_kernel_on_any_processor(run_program, kernel):
    done = run_program("portable", "seeded_bugs", kernel, order="7")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(_values(done.stdout), CORRECT[kernel], rtol=1e-5)


def test_every_kernel_has_a_verdict():
    source = (Path(__file__).parent / "seeded_bugs.cu").read_text()
    named = {line.split('"')[1] for line in source.splitlines() if line.startswith('  run("')}
    assert named == set(CORRECT) | set(MESSAGES) | set(WRONG_RESULTS)


def test_eager_copies_give_the_same_result(run_program):
    done = run_program("plain", "seeded_bugs", "async_tile", **{"async": "eager"})
    np.testing.assert_array_equal(_values(done.stdout), CORRECT["async_tile"])


def test_unknown_kernel(run_program):
    assert run_program("plain", "seeded_bugs", "nonsense").returncode == 2

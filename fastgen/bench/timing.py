"""Time two calls against each other: A B A B in one process, the ratio taken pair by pair.

A clock that drifts, a neighbour that wakes up or a chip that slows down then touches both sides of a pair.
Before each side the process is left to come to rest: the threads of many libraries go on spinning for
milliseconds after their last task, on the very cores that the other side would then be timed on.
The interval is the distribution-free one of the median: between two order statistics, so that no shape of
noise is assumed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastgen.bench.case import Call

Clock = Callable[[], float]


@dataclass(frozen=True)
class Budget:
    """How long a comparison may take. A sample lasts at least `sample_s`: short calls are repeated in it."""

    total_s: float = 4.0
    sample_s: float = 0.02
    min_pairs: int = 9
    max_pairs: int = 101


QUICK = Budget(total_s=0.3, sample_s=0.002, min_pairs=7, max_pairs=15)


@dataclass(frozen=True)
class Comparison:
    """Median times in ms a call, and the median of the pairwise ratios B / A with its 95% interval."""

    a_ms: float
    b_ms: float
    ratio: float
    ratio_lo: float
    ratio_hi: float
    pairs: int


def seconds(call: Call, repeats: int, clock: Clock, synchronize: Call | None = None) -> float:
    """Return the time of one call in seconds, averaged over `repeats` calls in a row."""
    if synchronize:
        synchronize()
    start = clock()
    for _ in range(repeats):
        call()
    if synchronize:
        synchronize()
    return (clock() - start) / repeats


def rest(most_s: float = 0.2) -> None:
    """Sleep until no thread of this process is busy any more, but for `most_s` seconds at most.

    The time that another thread has been running is booked when the scheduler ticks, on Linux every 1 to 10
    ms: within a shorter nap a thread that spins all the while looks idle.
    """
    nap_s, start = 0.012, time.perf_counter()
    while time.perf_counter() - start < most_s:
        before = time.process_time()
        time.sleep(nap_s)
        if time.process_time() - before < nap_s / 4:
            return


def calibrate(
    call: Call, sample_s: float, clock: Clock, synchronize: Call | None = None
) -> tuple[int, float]:
    """Return how many calls fill `sample_s`, and the time of one.

    The calls made here warm up as well. A first one, which may take its memory anew, does not count.
    """
    call()
    repeats = 1
    while True:
        once = seconds(call, repeats, clock, synchronize)
        if once * repeats >= sample_s:
            return repeats, once
        wanted = math.ceil(1.1 * sample_s / once) if once > 0 else 2 * repeats
        repeats = max(2 * repeats, min(wanted, 100 * repeats))


def compare(
    a: Call, b: Call, budget: Budget, *, clock: Clock = time.perf_counter, synchronize: Call | None = None
) -> Comparison:
    """Run A B A B ... within `budget` and return medians and the interval of the ratio."""
    repeats_a, once_a = calibrate(a, budget.sample_s, clock, synchronize)
    repeats_b, once_b = calibrate(b, budget.sample_s, clock, synchronize)
    pair_s = repeats_a * once_a + repeats_b * once_b
    pairs = min(max(int(budget.total_s / pair_s), budget.min_pairs), budget.max_pairs)
    times = []
    for _ in range(pairs):
        rest()
        time_a = seconds(a, repeats_a, clock, synchronize)
        rest()
        times.append((time_a, seconds(b, repeats_b, clock, synchronize)))
    ratio, low, high = median_interval([tb / ta for ta, tb in times])
    a_ms, b_ms = (1e3 * median_interval([pair[side] for pair in times])[0] for side in (0, 1))
    return Comparison(a_ms, b_ms, ratio, low, high, pairs)


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the ends of its 95% interval (order statistics; at least 6 values)."""
    from scipy import stats  # noqa: PLC0415 (an optional extra)

    if len(values) < 6:
        raise ValueError(f"a 95% interval of the median needs at least 6 values, got {len(values)}")
    interval = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    return float(stats.scoreatpercentile(values, 50)), float(interval.low), float(interval.high)

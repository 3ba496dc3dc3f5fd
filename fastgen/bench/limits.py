"""The machine's limits, measured in the same run as the cases that are held against them.

What torch reaches is taken as the limit where torch is known to be near it: `copy_` and `sum` over more
memory than any cache holds, `mm` of matrices that stay in cache. Random words come from fastgen's own
generator, into a result that stays in cache: it is the limit that the samplers built on that generator cannot
pass by drawing more cleverly.
"""

import time
from dataclasses import dataclass

import torch

from fastgen.bench.case import Call, Work
from fastgen.bench.timing import Clock, calibrate, seconds


@dataclass(frozen=True)
class Limits:
    """Rates a second: bytes a copy reads and writes, bytes read, float32 operations, random words."""

    copy_bytes: float
    read_bytes: float
    flops: float
    draws: float

    def binding(self, work: Work) -> tuple[str, float] | None:
        """Return the limit that takes `work` longest, and that time in seconds; None if no limit is named."""
        floors = {
            "copy bandwidth": work.bytes / self.copy_bytes,
            "read bandwidth": work.reads / self.read_bytes,
            "FMA rate": work.flops / self.flops,
            "random-number rate": work.draws / self.draws,
        }
        name = max(floors, key=lambda limit: floors[limit])
        return (name, floors[name]) if floors[name] > 0 else None

    def words(self) -> str:
        """Return the limits as one line."""
        return (
            f"copy {self.copy_bytes / 1e9:.1f} GB/s, read {self.read_bytes / 1e9:.1f} GB/s, "
            f"FMA {self.flops / 1e9:.0f} GFLOP/s, random words {self.draws / 1e9:.2f} G/s"
        )


def measure(device: str, *, quick: bool = False, clock: Clock = time.perf_counter) -> Limits:
    """Measure all limits on `device` with the threads set now; a few seconds, or less if `quick`."""
    from fastgen import random  # noqa: PLC0415 (the generator is loaded only where it is measured)

    on_gpu = device.startswith("cuda")
    synchronize = torch.cuda.synchronize if on_gpu else None
    source = torch.ones(2**24 if quick else 2**26, device=device)
    target = torch.empty_like(source)
    size, count = (4096, 2**20) if on_gpu else (1024, 2**12)  # a GPU wants more to do
    left, right = torch.randn(2, size, size, device=device)
    product = torch.empty_like(left)
    sample_ids = torch.arange(64, device=device)

    def rate(amount: float, call: Call) -> float:
        """The best of many short samples: a limit is what the machine can do when nobody else is on it."""
        repeats, _ = calibrate(call, 0.002, clock, synchronize)
        return amount / min(seconds(call, repeats, clock, synchronize) for _ in range(10 if quick else 100))

    with torch.inference_mode():
        return Limits(
            copy_bytes=rate(2 * source.nbytes, lambda: target.copy_(source)),
            read_bytes=rate(source.nbytes, source.sum),
            flops=rate(2 * size**3, lambda: torch.mm(left, right, out=product)),
            draws=rate(64 * count, lambda: random.bits(0, sample_ids, n=count)),
        )

"""A benchmark case of four numbers, for the tests of the harness."""

import torch

from fastgen.bench import limits, matching, runner, timing
from fastgen.bench.case import Case, Peer, Work

LIMITS = limits.Limits(copy_bytes=1e9, read_bytes=2e9, flops=1e10, draws=1e8)
FIELDS = {"op", "case", "peer", "device", "threads", "isa", "fastgen_ms", "peer_ms", "ratio", "ratio_lo"}
FIELDS |= {"ratio_hi", "limit", "limit_fraction", "match", "peak_mb", "peer_peak_mb", "machine", "versions"}


def toy(*peers, work=None, checks=None):
    return Case(
        op="toy",
        name="double of 4",
        inputs=lambda device: {"x": torch.arange(4.0, device=device)},
        fastgen=lambda inputs: lambda: 2 * inputs["x"],
        peers=peers,
        work=work or Work(items=4, item="numbers"),
        checks=checks,
    )


def run(*peers, **options):
    rows = runner.run(
        [toy(*peers, **options)], device="cpu", threads=1, limits=LIMITS, budget=timing.QUICK, memory=False
    )
    return list(rows)


def right(name="eager add"):
    return Peer(name, build=lambda inputs: lambda: inputs["x"] + inputs["x"], match=matching.exact)

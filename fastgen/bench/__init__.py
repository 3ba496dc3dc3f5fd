"""The benchmark harness: time fastgen against what people use today, and compare the outputs first.

`fastgen bench` runs the table of cases; `run` takes any cases, so that a kernel's
author can measure it as well.
"""

from fastgen.bench.case import Case, Match, Peer, Work, needs, needs_compiler
from fastgen.bench.runner import Row, run

__all__ = ["Case", "Match", "Peer", "Row", "Work", "needs", "needs_compiler", "run"]

"""The sampling engine: many samples, made in batches, kept in shards or lines, taken up after a kill."""

from fastgen.sampling.engine import sample
from fastgen.sampling.reader import load

__all__ = ["load", "sample"]

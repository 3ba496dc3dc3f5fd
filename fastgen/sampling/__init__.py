"""The sampling engine: many samples, made in batches, kept in shards, taken up again after a kill."""

from fastgen.sampling.engine import sample
from fastgen.sampling.reader import load

__all__ = ["load", "sample"]

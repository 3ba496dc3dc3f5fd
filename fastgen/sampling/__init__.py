"""The sampling engine: many samples, made in batches, kept in shards or lines, taken up after a kill."""

from fastgen.sampling.engine import sample
from fastgen.sampling.reader import load
from fastgen.sampling.texts import read_prompts, write_texts

__all__ = ["load", "read_prompts", "sample", "write_texts"]

"""One training loop for every family of model."""

from fastgen.training.loop import Result, train
from fastgen.training.state import Epoch

__all__ = ["Epoch", "Result", "train"]

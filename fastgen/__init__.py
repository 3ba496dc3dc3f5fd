"""fastgen: fast, reproducible sampling from generative models. Same seed, same sample."""

from fastgen import data, ops, random, training
from fastgen.backends import backends, use_backend
from fastgen.integrations import accelerate
from fastgen.sampling import sample

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "accelerate",
    "backends",
    "data",
    "ops",
    "random",
    "sample",
    "training",
    "use_backend",
]

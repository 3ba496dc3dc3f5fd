"""fastgen: fast, reproducible sampling from generative models. Same seed, same sample."""

from fastgen import ops, random
from fastgen.backends import backends, use_backend
from fastgen.integrations import accelerate
from fastgen.sampling import sample

__version__ = "0.1.0"

__all__ = ["__version__", "accelerate", "backends", "ops", "random", "sample", "use_backend"]

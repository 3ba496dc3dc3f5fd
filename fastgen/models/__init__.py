"""Families of generative models: each has `loss(batch)` and `sample(sample_ids, *, seed, **options)`."""

from fastgen.models.base import Model, load

__all__ = ["Model", "load"]

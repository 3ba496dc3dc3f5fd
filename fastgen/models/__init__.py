"""Families of generative models: each has `loss(batch)` and `sample(sample_ids, *, seed, **options)`."""

from fastgen.models.base import Model, load
from fastgen.models.flow import Flow
from fastgen.models.glow import Glow
from fastgen.models.ising import Ising, Tempering
from fastgen.models.ising_exact import (
    critical_beta,
    onsager_energy,
    onsager_magnetisation,
    torus_energy,
    torus_log_partition,
)
from fastgen.models.ising_observables import TemperatureSweep, binder_cumulant
from fastgen.models.likelihood import Likelihood, likelihood
from fastgen.models.maf import IAF, MAF
from fastgen.models.nsf import NSF
from fastgen.models.rbm import RBM
from fastgen.models.realnvp import RealNVP
from fastgen.models.transformer import Transformer

__all__ = [
    "IAF",
    "MAF",
    "NSF",
    "RBM",
    "Flow",
    "Glow",
    "Ising",
    "Likelihood",
    "Model",
    "RealNVP",
    "TemperatureSweep",
    "Tempering",
    "Transformer",
    "binder_cumulant",
    "critical_beta",
    "likelihood",
    "load",
    "onsager_energy",
    "onsager_magnetisation",
    "torus_energy",
    "torus_log_partition",
]

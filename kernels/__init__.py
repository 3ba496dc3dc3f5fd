"""Triton kernels and their launchers, installed as fastgen.kernels; imported only when one runs."""

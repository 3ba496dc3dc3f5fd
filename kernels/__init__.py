"""Triton kernels and their launchers, installed as fastgen.kernels. Needs triton; imported only when one runs."""

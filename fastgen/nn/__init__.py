"""Layers (torch modules) built on fastgen's ops."""

from fastgen.nn.flow import FlowLayer, FlowSequence
from fastgen.nn.linear import Linear

__all__ = ["FlowLayer", "FlowSequence", "Linear"]

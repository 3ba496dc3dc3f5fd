"""Layers (torch modules) built on fastgen's ops."""

from fastgen.nn.flow import FlowLayer, FlowSequence
from fastgen.nn.linear import Linear
from fastgen.nn.made import MADE, MaskedAutoregressive

__all__ = ["MADE", "FlowLayer", "FlowSequence", "Linear", "MaskedAutoregressive"]

"""Layers (torch modules) built on fastgen's ops."""

from fastgen.nn.flow import FlowLayer, FlowSequence

__all__ = ["FlowLayer", "FlowSequence"]

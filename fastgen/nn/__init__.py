"""Layers (torch modules) built on fastgen's ops."""

from fastgen.nn.actnorm import ActNorm
from fastgen.nn.attention import MultiheadAttention, scaled_dot_product_attention
from fastgen.nn.coupling import AffineCoupling, ConditionalNormal, Coupling, SplineCoupling, Split
from fastgen.nn.dequantization import Dequantization, Logit
from fastgen.nn.flow import FlowLayer, FlowSequence, Inverse
from fastgen.nn.invertible_linear import InvertibleLinear
from fastgen.nn.linear import Linear
from fastgen.nn.made import MADE, MaskedAutoregressive
from fastgen.nn.networks import MLP, ConvNet, ResidualMLP
from fastgen.nn.shapes import ChannelsLast, Flatten, Permutation, Squeeze

__all__ = [
    "MADE",
    "MLP",
    "ActNorm",
    "AffineCoupling",
    "ChannelsLast",
    "ConditionalNormal",
    "ConvNet",
    "Coupling",
    "Dequantization",
    "Flatten",
    "FlowLayer",
    "FlowSequence",
    "Inverse",
    "InvertibleLinear",
    "Linear",
    "Logit",
    "MaskedAutoregressive",
    "MultiheadAttention",
    "Permutation",
    "ResidualMLP",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "scaled_dot_product_attention",
]

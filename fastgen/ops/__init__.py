"""The ops: pure functions of tensors, each under its own word. Importing them registers them with torch."""

from fastgen.ops import random as _random  # noqa: F401  registers the draws
from fastgen.ops._masked_network import Affine, MaskedNetwork, Spline
from fastgen.ops._packed_weight import PackedWeight
from fastgen.ops._transformer_weights import Norm, Projection, TransformerLayer, TransformerWeights
from fastgen.ops.affine_coupling import affine_coupling
from fastgen.ops.attention import attention
from fastgen.ops.conv_net import conv_net
from fastgen.ops.decode_attention import decode_attention
from fastgen.ops.invertible_linear import invertible_linear
from fastgen.ops.ising import IsingState, ising
from fastgen.ops.layer_norm import layer_norm
from fastgen.ops.linear import linear
from fastgen.ops.made_inverse import made_inverse
from fastgen.ops.packed_linear import packed_linear
from fastgen.ops.rbm_gibbs import RBMState, rbm_gibbs
from fastgen.ops.rms_norm import rms_norm
from fastgen.ops.rope import rope
from fastgen.ops.rq_spline import rq_spline
from fastgen.ops.sample_logits import Sampled, sample_logits
from fastgen.ops.transformer import transformer
from fastgen.random import bernoulli, bits, normal, uniform

__all__ = [
    "Affine",
    "IsingState",
    "MaskedNetwork",
    "Norm",
    "PackedWeight",
    "Projection",
    "RBMState",
    "Sampled",
    "Spline",
    "TransformerLayer",
    "TransformerWeights",
    "affine_coupling",
    "attention",
    "bernoulli",
    "bits",
    "conv_net",
    "decode_attention",
    "invertible_linear",
    "ising",
    "layer_norm",
    "linear",
    "made_inverse",
    "normal",
    "packed_linear",
    "rbm_gibbs",
    "rms_norm",
    "rope",
    "rq_spline",
    "sample_logits",
    "transformer",
    "uniform",
]

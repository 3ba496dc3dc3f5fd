"""Block Gibbs sampling by scikit-learn's `BernoulliRBM.gibbs`, in the float32 of the weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Inputs


def build(inputs: Inputs, *, accelerate: bool = False) -> Call:
    """Return the run of `inputs["half_steps"]` / 2 calls of `gibbs`, each fed with the last one's result.

    With `accelerate`, those of what `fastgen.accelerate` makes of the estimator.
    """
    model = _fitted(inputs)
    if accelerate:
        model, _ = fastgen.accelerate(model)
    start = inputs["v"].float().cpu().numpy()

    def run() -> np.ndarray:
        v = start
        for _ in range(inputs["half_steps"] // 2):
            v = model.gibbs(v)
        return v

    return run


def unpack(v: np.ndarray) -> tuple[Tensor, None]:
    """Return the visible units as float32; scikit-learn does not return the hidden ones."""
    return torch.from_numpy(v).float(), None


def _fitted(inputs: Inputs) -> Any:
    """Return a `BernoulliRBM` that holds the weights and biases as if it had been fitted."""
    from sklearn.neural_network import BernoulliRBM  # noqa: PLC0415 (an optional extra)

    weight = inputs["weight"].float()
    model = BernoulliRBM(n_components=weight.shape[1], random_state=inputs["seed"])
    model.components_ = weight.t().contiguous().cpu().numpy()
    model.intercept_visible_ = inputs["v_bias"].float().cpu().numpy()
    model.intercept_hidden_ = inputs["h_bias"].float().cpu().numpy()
    return model

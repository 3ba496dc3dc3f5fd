"""Restricted Boltzmann machines, with binary or gaussian visible units."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastgen import random
from fastgen.models import rbm_partition
from fastgen.models.base import Model
from fastgen.models.estimates import Estimate
from fastgen.ops.rbm_gibbs import RBMState, rbm_gibbs
from fastgen.random import Stream, as_int, resolve_sample_ids, resolve_seed


class RBM(Model):
    """P(v, h) ~ exp(-E); E = -v.b - h.c - v W h, or |v - b|^2 / 2 - h.c - v W h with gaussian visible units.

    Trained by contrastive divergence (Hinton 2002, doi:10.1162/089976602760128018): the negative phase takes
    `gibbs_steps` steps from the batch, or, with `chains`, continues that many persistent chains (Tieleman
    2008, doi:10.1145/1390156.1390290). Chains and their clock are buffers, so that a training that was
    stopped goes on to the same weights.

    Args:
        visible: number of visible units, or the shape of a sample, such as (1, 28, 28).
        hidden: number of hidden units.
        visible_kind: "bernoulli", units of 0 and 1, or "gaussian", real units of variance 1 given h.
        chains: persistent chains; 0 starts the chains of each update at its batch.
        gibbs_steps: steps, each of h and then v, in each update.
        seed: of the initial weights, N(0, 0.01^2), and of the draws in training.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """

    base_bias: Tensor
    chains: Tensor
    updates: Tensor

    def __init__(
        self,
        visible: int | Sequence[int],
        hidden: int,
        *,
        visible_kind: str = "bernoulli",
        chains: int = 0,
        gibbs_steps: int = 1,
        seed: int = 0,
    ) -> None:
        sides = tuple(visible) if isinstance(visible, Iterable) else (visible,)
        shape = tuple(as_int("visible", side, 1) for side in sides)
        hidden, chains = as_int("hidden", hidden, 1), as_int("chains", chains, 0)
        gibbs_steps = as_int("gibbs_steps", gibbs_steps, 1)
        super().__init__(
            visible=shape,
            hidden=hidden,
            visible_kind=visible_kind,
            chains=chains,
            gibbs_steps=gibbs_steps,
            seed=resolve_seed(seed),
        )
        if not shape or visible_kind not in ("bernoulli", "gaussian"):
            raise ValueError(
                f"visible is {visible!r} and visible_kind {visible_kind!r}, wanted a size or a shape, and"
                " 'bernoulli' or 'gaussian'"
            )
        self.shape, units = shape, math.prod(shape)
        self.gaussian = visible_kind == "gaussian"
        weight = random.normal(
            self.config["seed"], torch.arange(units), n=hidden, stream=Stream.INITIAL_WEIGHTS
        )
        self.weight = torch.nn.Parameter(0.01 * weight)
        self.v_bias = torch.nn.Parameter(torch.zeros(units))
        self.h_bias = torch.nn.Parameter(torch.zeros(hidden))
        self.register_buffer("base_bias", torch.zeros(units))
        self.register_buffer("chains", self._start(torch.arange(chains), self.config["seed"]))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def initialise(self, data: Tensor) -> None:
        """Set the visible biases to those of independent units with the data's means; draw the chains anew.

        A binary unit gets the log-odds of its mean, (ones + 1) / (count + 2). These base rates, kept in
        `base_bias`, are also where samples and the estimate of the partition function start.

        Args:
            data: (N, *visible), N >= 1, finite; of binary units from 0 to 1.
        """
        v = self._flat(data)
        self._check_data("data", v)
        total = v.double().sum(0)
        if self.gaussian:
            self.base_bias.copy_(total / len(v))
        else:
            self.base_bias.copy_(torch.logit((total + 1) / (len(v) + 2)))
        self.v_bias.copy_(self.base_bias)
        ids = torch.arange(len(self.chains), device=self.weight.device)
        self.chains.copy_(self._start(ids, self.config["seed"]))

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -log sum over h of exp(-E(v, h)).

        Args:
            v: (B, *visible) of any real dtype; of binary units, values between 0 and 1 are taken as they are.

        Returns:
            (B,), differentiable.
        """
        v = self._flat(v)
        own = (v - self.v_bias).square().sum(1) / 2 if self.gaussian else -(v @ self.v_bias)
        return own - functional.softplus(torch.addmm(self.h_bias, v, self.weight)).sum(1)

    def hidden_mean(self, v: Tensor) -> Tensor:
        """P(h = 1 | v), (B, hidden), of v (B, *visible)."""
        return torch.sigmoid(torch.addmm(self.h_bias, self._flat(v), self.weight))

    def visible_mean(self, h: Tensor) -> Tensor:
        """E[v | h], (B, *visible), of h (B, hidden), which may be probabilities."""
        mean = torch.addmm(self.v_bias, h.to(self.weight.dtype), self.weight.T)
        return (mean if self.gaussian else torch.sigmoid(mean)).unflatten(1, self.shape)

    def reconstruct(self, v: Tensor) -> Tensor:
        """E[v | h = P(h = 1 | v)], (B, *visible): one step of mean field."""
        return self.visible_mean(self.hidden_mean(v))

    def loss(self, batch: Tensor) -> Tensor:
        """Contrastive divergence: the batch's mean free energy minus that of the chains' ends.

        In training mode each call moves the clock, and the persistent chains. In evaluation mode nothing
        moves: the chains start at the batch, with draws of their own. The value is no measure of progress.

        Args:
            batch: (B, *visible), of binary units from 0 to 1; chains that start at grey values start at draws
                with these probabilities.
        """
        v = self._flat(batch)
        self._check_data("batch", v)
        persistent = self.training and len(self.chains) > 0
        with torch.no_grad():
            # Measuring must not reuse the draws of training.
            seed = self.config["seed"] if self.training else ~self.config["seed"]
            end = self._gibbs(
                self.chains if persistent else self._at(v, seed),
                2 * self.config["gibbs_steps"],
                seed=seed,
                first_step=2 * self.config["gibbs_steps"] * int(self.updates),
            ).v
            if persistent:
                self.chains.copy_(end)
            if self.training:
                self.updates += 1
        return self.free_energy(batch).mean() - self.free_energy(end.unflatten(1, self.shape)).mean()

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        sample_ids: Tensor,
        *,
        seed: int | None,
        steps: int = 1000,
        beta: float | Tensor = 1.0,
        start: Tensor | None = None,
        first_step: int = 0,
        probabilities: bool = False,
    ) -> Tensor:
        """The chains of these ids after some steps of block Gibbs sampling, each of h and then v.

        Args:
            sample_ids: (B,) int64.
            seed: 64 bits; None takes a seed from torch's default generator.
            steps: 0 or more.
            beta: inverse temperature, P ~ exp(-beta E): a number, or a floating tensor (B,).
            start: (B, *visible); None draws from the base rates.
            first_step: number of the first step, to continue a chain from `start`.
            probabilities: return what the last step drew v from, float32, which makes smoother pictures.

        Returns:
            (B, *visible), bool or, of gaussian units, float32.
        """
        seed = resolve_seed(seed)
        v = self._start(sample_ids, seed) if start is None else self._states("start", start)
        return self._run(v, steps, first_step, probabilities, beta=beta, seed=seed, sample_ids=sample_ids)

    @torch.no_grad()
    def inpaint(
        self,
        v: Tensor,
        known: Tensor,
        *,
        seed: int | None,
        steps: int = 1000,
        sample_ids: Tensor | None = None,
        probabilities: bool = False,
    ) -> Tensor:
        """Samples of the unknown units given the known ones.

        Args:
            v: (B, *visible), read where `known` is true.
            known: bool, (*visible) or (B, *visible).
            seed, steps, probabilities: as `sample`.
            sample_ids: (B,) int64; None is 0 .. B - 1.

        Returns:
            As `sample`, with the known units as they came.
        """
        seed = resolve_seed(seed)
        flat = self._flat(v, "v")
        if not isinstance(known, Tensor):
            raise TypeError(f"known is {type(known).__name__}, wanted a bool tensor")
        if known.dtype != torch.bool or known.shape not in (self.shape, (len(v), *self.shape)):
            raise ValueError(
                f"known is {known.dtype} {tuple(known.shape)}, wanted torch.bool {self.shape}, with or"
                " without a batch in front"
            )
        mask = known.reshape(-1, flat.shape[1]).expand_as(flat)
        v = self._states("v", torch.where(mask, flat, 0).unflatten(1, self.shape))
        ids = resolve_sample_ids(sample_ids, len(v), v.device)
        v = torch.where(mask, v, self._start(ids, seed))
        return self._run(v, steps, 0, probabilities, clamp_mask=mask, seed=seed, sample_ids=ids)

    @torch.no_grad()
    def log_partition(self, *, seed: int | None, chains: int = 100, steps: int = 1000) -> Estimate:
        """log Z and its standard error by annealed importance sampling; see `rbm_partition.annealed`."""
        return rbm_partition.annealed(
            self.weight, self.v_bias, self.h_bias, self.base_bias, self.gaussian,
            chains=chains, steps=steps, seed=resolve_seed(seed),
        )  # fmt: skip

    @torch.no_grad()
    def log_partition_back(self, v: Tensor, *, seed: int | None, steps: int = 1000) -> Estimate:
        """log Z from above, from samples v (B, *visible) of the model; see `rbm_partition.annealed_back`."""
        return rbm_partition.annealed_back(
            self.weight, self.v_bias, self.h_bias, self.base_bias, self.gaussian,
            self._states("v", v).float(), steps=steps, seed=resolve_seed(seed),
        )  # fmt: skip

    @torch.no_grad()
    def exact_log_partition(self) -> float:
        """log Z by enumeration of the smaller layer, gaussian units aside; it may have up to 24 units."""
        return rbm_partition.exact(self.weight, self.v_bias, self.h_bias, self.gaussian)

    @torch.no_grad()
    def log_likelihood(self, v: Tensor, log_partition: float | Tensor | Estimate) -> Tensor:
        """log p(v) = -F(v) - log Z in nats, (B,) float64, of v (B, *visible); log Z may be an Estimate."""
        if isinstance(log_partition, Estimate):
            log_partition = log_partition.value
        return -self.free_energy(v).double() - log_partition

    @classmethod
    def from_sklearn(cls, estimator: Any, visible: Sequence[int] | None = None, **arguments: Any) -> "RBM":
        """The model of a fitted `sklearn.neural_network.BernoulliRBM`, in float32.

        Args:
            estimator: has components_, intercept_visible_ and intercept_hidden_.
            visible: the shape of a sample; None is (features,).
            arguments: of the constructor, such as chains.
        """
        if not hasattr(estimator, "components_"):
            raise ValueError(f"this {type(estimator).__name__} is not fitted, wanted one with components_")
        hidden, units = estimator.components_.shape
        model = cls(units if visible is None else visible, hidden, **arguments)
        if model.weight.shape != (units, hidden) or model.gaussian:
            raise ValueError(f"visible is {model.shape}, wanted {units} bernoulli units")
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(estimator.components_.T))
            model.h_bias.copy_(torch.as_tensor(estimator.intercept_hidden_))
            model.v_bias.copy_(torch.as_tensor(estimator.intercept_visible_))
        return model

    def to_sklearn(self, **arguments: Any) -> Any:
        """A fitted `sklearn.neural_network.BernoulliRBM`, in float64; `arguments` go to its constructor."""
        from sklearn.neural_network import BernoulliRBM  # noqa: PLC0415  an optional package

        if self.gaussian:
            raise ValueError("this RBM has gaussian visible units, scikit-learn has none of those")
        units, hidden = self.weight.shape
        estimator = BernoulliRBM(n_components=hidden, **arguments)
        weight, v_bias, h_bias = (p.detach().double().cpu() for p in (self.weight, self.v_bias, self.h_bias))
        estimator.components_ = weight.numpy().T
        estimator.intercept_visible_, estimator.intercept_hidden_ = v_bias.numpy(), h_bias.numpy()
        estimator.h_samples_ = weight.new_zeros(estimator.batch_size, hidden).numpy()
        estimator.n_features_in_, estimator._n_features_out = units, hidden
        return estimator

    def _flat(self, v: Tensor, name: str = "the batch") -> Tensor:
        """(B, *visible) as (B, V) in the dtype of the weights."""
        if not isinstance(v, Tensor):
            raise TypeError(f"{name} is {type(v).__name__}, wanted a tensor")
        if v.layout != torch.strided:
            raise TypeError(f"{name} is {v.layout}, wanted a dense tensor")
        if v.shape[1:] != self.shape:
            raise ValueError(
                f"{name} has shape {tuple(v.shape)}, wanted (B, {', '.join(map(str, self.shape))})"
            )
        return v.flatten(1).to(self.weight.dtype)

    def _check_data(self, name: str, v: Tensor) -> None:
        if len(v) == 0:
            raise ValueError(f"{name} has no rows, wanted at least one")
        if not bool((torch.isfinite(v) if self.gaussian else (v >= 0) & (v <= 1)).all()):
            wanted = "finite numbers" if self.gaussian else "0 to 1"
            raise ValueError(f"{name} ranges from {float(v.min())} to {float(v.max())}, wanted {wanted}")

    def _states(self, name: str, v: Tensor) -> Tensor:
        """(B, *visible) as the states (B, V) of chains."""
        flat = self._flat(v, name)
        if self.gaussian:
            return flat.float()
        if not bool(((flat == 0) | (flat == 1)).all()):
            raise ValueError(f"{name} ranges from {float(flat.min())} to {float(flat.max())}, wanted 0 and 1")
        return flat.to(torch.uint8)

    def _start(self, ids: Tensor, seed: int) -> Tensor:
        """(B, V) drawn from the base rates."""
        n, stream = len(self.base_bias), Stream.RBM_START
        if self.gaussian:
            return self.base_bias.float() + random.normal(seed, ids, n=n, stream=stream)
        return random.bernoulli(torch.sigmoid(self.base_bias), seed, ids, n=n, stream=stream).to(torch.uint8)

    def _at(self, v: Tensor, seed: int) -> Tensor:
        """(B, V) drawn from a batch of probabilities; of gaussian units, the batch."""
        if self.gaussian:
            return v.float()
        ids = torch.arange(len(v), device=v.device)
        step = 1 + int(self.updates)  # step 0 drew the chains
        draws = random.bernoulli(v, seed, ids, step=step, n=v.shape[1], stream=Stream.RBM_START)
        return draws.to(torch.uint8)

    def _gibbs(self, v: Tensor, half_steps: int, **arguments: Any) -> RBMState:
        """Half steps from v on, h first."""
        weight = self.weight if self.weight.dtype == torch.bfloat16 else self.weight.float()
        return rbm_gibbs(
            v,
            v.new_zeros((len(v), weight.shape[1]), dtype=torch.uint8),
            weight,
            self.v_bias,
            self.h_bias,
            half_steps=half_steps,
            visible=self.config["visible_kind"],
            **arguments,
        )

    def _run(self, v: Tensor, steps: int, first_step: int, probabilities: bool, **arguments: Any) -> Tensor:
        steps = as_int("steps", steps, int(probabilities))
        first = 2 * as_int("first_step", first_step)
        state = self._gibbs(v, 2 * steps, first_step=first, probabilities=probabilities, **arguments)
        if state.v_mean is not None:
            return state.v_mean.unflatten(1, self.shape)
        return (state.v if self.gaussian else state.v.bool()).unflatten(1, self.shape)

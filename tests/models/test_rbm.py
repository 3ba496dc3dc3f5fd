"""fastgen.models.RBM held against exact enumeration, and itself in other batches and after a stop."""

import math

import pytest
import torch
from scipy import integrate, stats

import fastgen
from fastgen import data, models
from fastgen.models import RBM
from fastgen.training import train


def states(units: int) -> torch.Tensor:
    """All states (2^units, units) of 0 and 1, float64."""
    return ((torch.arange(2**units)[:, None] >> torch.arange(units)) & 1).double()


def random_rbm(visible: int, hidden: int, kind: str = "bernoulli", **arguments) -> RBM:
    model = RBM(visible, hidden, visible_kind=kind, **arguments)
    generator = torch.Generator().manual_seed(visible + hidden)
    with torch.no_grad():
        for parameter, scale in ((model.weight, 0.7), (model.v_bias, 0.5), (model.h_bias, 0.5)):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def joint(model: RBM, beta: float = 1.0) -> torch.Tensor:
    """-beta E of every (v, h), (2^V, 2^H) float64, written out from the definition."""
    weight, b, c = (p.detach().double() for p in (model.weight, model.v_bias, model.h_bias))
    v, h = states(len(b)), states(len(c))
    return beta * ((v @ b)[:, None] + (h @ c)[None] + v @ weight @ h.T)


def p_value(samples: torch.Tensor, probability: torch.Tensor) -> float:
    """Chi-square of samples (N, V) of 0 and 1; states of fewer than 8 expected are taken together."""
    index = (samples.long() << torch.arange(samples.shape[1])).sum(1)
    seen = torch.bincount(index, minlength=len(probability)).double()
    expected = probability * len(samples)
    rare = expected < 8
    if rare.any():
        seen, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, expected))
    return stats.chisquare(seen.numpy(), expected.numpy()).pvalue


# Exact values


@pytest.mark.parametrize("visible, hidden", [(6, 5), (4, 7), (1, 1)])
def test_the_partition_function_is_the_sum_over_all_states(visible, hidden):
    model = random_rbm(visible, hidden)
    exact = torch.logsumexp(joint(model).flatten(), 0).item()
    assert model.exact_log_partition() == pytest.approx(exact, rel=1e-12)


def test_a_partition_function_in_more_than_one_chunk():
    model = RBM(14, 15)
    with torch.no_grad():
        model.weight.zero_()
        model.h_bias.fill_(0.3)
    exact = 14 * math.log(2) + 15 * math.log1p(math.exp(0.3))
    assert model.exact_log_partition() == pytest.approx(exact, rel=1e-7)


def test_the_partition_function_of_gaussian_units_is_the_integral():
    model = random_rbm(1, 3, "gaussian")
    weight, b, c = (p.detach().double() for p in (model.weight, model.v_bias, model.h_bias))

    def density(v: float) -> float:
        return torch.exp(-((v - b[0]) ** 2) / 2 + states(3) @ (c + v * weight[0])).sum().item()

    exact = math.log(integrate.quad(density, -15, 15, epsabs=0, epsrel=1e-10)[0])
    assert model.exact_log_partition() == pytest.approx(exact, rel=1e-9)
    assert model.free_energy(torch.tensor([[0.7]])).item() == pytest.approx(-math.log(density(0.7)), rel=1e-5)


def test_the_free_energy_sums_over_the_hidden_units():
    model = random_rbm(6, 5)
    exact = -torch.logsumexp(joint(model), 1)
    assert torch.allclose(model.free_energy(states(6)).double(), exact, atol=1e-5)
    log_p = model.log_likelihood(states(6), model.exact_log_partition())
    assert log_p.dtype == torch.float64 and log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_the_conditional_means():
    model = random_rbm(6, 5)
    table = joint(model).exp()
    assert torch.allclose(
        model.hidden_mean(states(6)).double(), table @ states(5) / table.sum(1, keepdim=True), atol=1e-6
    )
    given_h = table.T @ states(6) / table.sum(0)[:, None]
    assert torch.allclose(model.visible_mean(states(5)).double(), given_h, atol=1e-6)
    v = states(6)[:7]
    assert torch.equal(model.reconstruct(v), model.visible_mean(model.hidden_mean(v)))


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("seed", [1, 2])
def test_annealed_importance_sampling_is_within_its_error(kind, seed):
    model = random_rbm(8, 6, kind)
    with torch.no_grad():
        model.base_bias.copy_(model.v_bias + 0.3)
    value, error = model.log_partition(seed=seed, chains=1000, steps=150)
    assert 0 < error < 0.05
    assert (
        abs(value - model.exact_log_partition()) < 4.5 * error
    )  # false alarms: 4 x 7e-6, more in heavy tails


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_annealing_back_from_samples_is_within_its_error_and_bounds_from_above(kind):
    model = random_rbm(6, 5, kind)
    model.base_bias.copy_(torch.linspace(-0.5, 0.5, 6))
    exact = model.exact_log_partition()
    v = model.sample(torch.arange(4000), seed=8, steps=300)
    estimate = model.log_partition_back(v, seed=5, steps=100)
    assert abs(estimate.value - exact) < 5 * estimate.error and estimate.error < 0.05
    # The mean of many estimates in one step of two chains lies above, that of annealing forward below.
    back = [model.log_partition_back(v[i : i + 2], seed=i, steps=1).value for i in range(0, 400, 2)]
    forward = [model.log_partition(seed=i, chains=2, steps=1).value for i in range(200)]
    for values, side in ((torch.stack(back), 1), (torch.stack(forward), -1)):
        assert side * (values.mean() - exact) > 3 * values.std() / 200**0.5


def test_annealing_that_forgets_its_base_rates_would_be_seen():
    model = random_rbm(8, 6)
    value, error = model.log_partition(seed=1, chains=1000, steps=150)
    with torch.no_grad():
        model.v_bias += 0.05
    assert abs(value - model.exact_log_partition()) > 4.5 * error


# Training


def exact_gradient(model: RBM, batch: torch.Tensor) -> list[torch.Tensor]:
    """Of the mean of -log p(v)."""
    log_z = torch.logsumexp(-model.free_energy(states(len(model.v_bias)).float()), 0)
    return list(torch.autograd.grad(model.free_energy(batch).mean() + log_z, list(model.parameters())))


@pytest.mark.parametrize("chains", [0, 20_000])
def test_contrastive_divergence_with_long_chains_has_the_gradient_of_the_likelihood(chains):
    model = random_rbm(6, 4, chains=chains, gibbs_steps=100)
    batch = (states(6)[torch.arange(20_000) % 11]).float()
    exact = exact_gradient(model, batch)
    got = torch.autograd.grad(model.loss(batch), list(model.parameters()))
    # Each is a mean of 20,000 numbers within [0, 1], of deviation at most 1/2. False alarms: 34 x 7e-6.
    allowed = 4.5 * 0.5 / math.sqrt(20_000)
    for right, found in zip(exact, got, strict=True):
        assert (right - found).abs().max() < allowed
    short = random_rbm(6, 4, gibbs_steps=1)
    biased = torch.autograd.grad(short.loss(batch), list(short.parameters()))
    assert (exact[0] - biased[0]).abs().max() > allowed  # one step from the data is biased, and seen


@pytest.mark.parametrize("arguments", [dict(chains=0), dict(chains=200), dict(chains=64, gibbs_steps=3)])
def test_training_raises_the_likelihood(arguments):
    images = data.digits().train > 127
    model = RBM((1, 8, 8), 12, **arguments)
    model.initialise(images)
    before = model.log_likelihood(images, model.exact_log_partition()).mean()
    train(model, images.float(), epochs=20, batch_size=64, optimizer="sgd", lr=0.02, progress=False)
    after = model.log_likelihood(images, model.exact_log_partition()).mean()
    independent = torch.distributions.Bernoulli(logits=model.base_bias).log_prob(images.flatten(1).float())
    assert before == pytest.approx(independent.sum(1).mean().item(), abs=0.2)  # the weights are still near 0
    assert after > before + 2


def test_gaussian_units_learn_their_correlations():
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(2, (2000, 1), generator=generator) * 2.0 - 1
    samples = sign * torch.tensor([2.0, -2.0, 2.0]) + torch.randn(2000, 3, generator=generator) + 1
    model = RBM(3, 4, visible_kind="gaussian", chains=200)
    model.initialise(samples)
    assert torch.allclose(model.v_bias, samples.mean(0), atol=1e-5)
    train(model, samples, epochs=40, batch_size=100, optimizer="sgd", lr=0.001, progress=False)
    drawn = model.sample(torch.arange(4000), seed=3, steps=300)
    assert drawn.dtype == torch.float32
    assert torch.allclose(torch.corrcoef(drawn.T), torch.corrcoef(samples.T), atol=0.1)


@pytest.mark.parametrize("chains", [0, 10])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(tmp_path, chains):
    images = (data.digits().train[:200] > 127).float()
    run = dict(batch_size=32, optimizer="sgd", lr=0.05, progress=False)
    whole, stopped, fresh = (RBM((1, 8, 8), 9, chains=chains, gibbs_steps=2) for _ in range(3))
    train(whole, images, steps=17, **run)
    train(stopped, images, steps=8, out=tmp_path, **run)
    train(fresh, images, steps=17, out=tmp_path, **run)
    for key, value in whole.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    assert int(whole.updates) == 17
    assert models.load(tmp_path).fingerprint() == whole.fingerprint()


def test_evaluation_moves_nothing_and_training_does():
    model, batch = RBM(9, 4, chains=5), states(9)[100:120].float()
    before = model.fingerprint()
    model.eval()
    assert model.loss(batch) == model.loss(batch)
    assert model.fingerprint() == before
    model.train()
    assert model.loss(batch) != model.loss(batch)
    assert int(model.updates) == 2


def test_grey_values_are_probabilities():
    model = random_rbm(6, 4)
    batch = torch.full((20_000, 6), 0.25)
    model.loss(batch)  # first hidden step from draws
    start = model._at(batch, 0)
    assert abs(start.double().mean().item() - 0.25) < 4.5 * 0.433 / math.sqrt(start.numel())


# Samples


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_samples_have_the_exact_distribution(beta):
    model = random_rbm(6, 5)
    exact = torch.softmax(torch.logsumexp(joint(model, beta), 1), 0)
    samples = model.sample(torch.arange(40_000), seed=3, steps=50, beta=beta)
    assert samples.dtype == torch.bool
    assert p_value(samples, exact) > 1e-4  # false alarms: 2 in 10,000
    assert p_value(samples, torch.softmax(torch.logsumexp(joint(model, beta * 1.1), 1), 0)) < 1e-6


def test_inpainting_draws_from_the_conditional_distribution():
    model = random_rbm(6, 5)
    known = torch.tensor([True, True, False, False, True, False])
    v = torch.tensor([1, 0, 1, 1, 1, 0]).expand(40_000, 6)
    samples = model.inpaint(v, known, seed=2, steps=50)
    assert torch.equal(samples[:, known], v[:, known].bool())
    matches = (states(6)[:, known] == v[0, known]).all(1)
    marginal = torch.logsumexp(joint(model), 1).masked_fill(~matches, -math.inf)
    exact = torch.softmax(marginal, 0)[matches]  # in the order of the states of the unknown units
    assert p_value(samples[:, ~known], exact) > 1e-4


def test_samples_do_not_depend_on_the_batch_and_continue_after_a_stop():
    model, ids = random_rbm(37, 70), torch.arange(257)
    whole = model.sample(ids, seed=-1, steps=9)
    assert torch.equal(model.sample(torch.tensor([200]), seed=-1, steps=9), whole[200:201])
    first = model.sample(ids, seed=-1, steps=4)
    rest = model.sample(ids, seed=-1, steps=5, start=first, first_step=4)
    assert torch.equal(rest, whole)
    assert not torch.equal(model.sample(ids, seed=0, steps=9), whole)
    known = torch.arange(37) < 20
    inpainted = model.inpaint(whole, known, seed=5, steps=7)
    alone = model.inpaint(whole[9:10], known[None], seed=5, steps=7, sample_ids=torch.tensor([9]))
    assert torch.equal(alone, inpainted[9:10])


def test_probabilities_are_what_the_last_step_drew_from():
    model, ids = random_rbm(12, 8), torch.arange(50_000)
    p = model.sample(ids, seed=4, steps=3, probabilities=True)
    v = model.sample(ids, seed=4, steps=3)
    assert p.dtype == torch.float32 and p.shape == v.shape
    z = (v.double() - p).sum(0) / (p * (1 - p)).double().sum(0).sqrt()
    assert z.abs().max() < 5  # false alarms: 12 x 6e-7
    assert (p - v.float()).abs().mean() < 0.5


def test_samples_start_at_the_base_rates():
    model = RBM((2, 3), 4)
    images = torch.rand(50, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    model.initialise(images)
    rates = (images.sum(0) + 1) / 52
    assert torch.allclose(torch.sigmoid(model.v_bias).view(2, 3), rates, atol=1e-6)
    start = model.sample(torch.arange(20_000), seed=0, steps=0)
    assert start.shape == (20_000, 2, 3)
    assert (start.double().mean(0) - rates).abs().max() < 4.5 * 0.5 / math.sqrt(20_000)


def test_it_saves_loads_and_is_sampled_by_the_engine(tmp_path):
    model = random_rbm(12, 8)
    loaded = models.load(model.save(tmp_path / "model"))
    assert type(loaded) is RBM and loaded.fingerprint() == model.fingerprint()
    samples = fastgen.sample(loaded, 10, seed=2, batch_size=3, steps=20, progress=False)
    assert torch.equal(samples, model.sample(torch.arange(10), seed=2, steps=20))
    pictures = RBM((1, 3, 4), 2)
    out = fastgen.sample(pictures, 5, out=tmp_path / "png", format="png", steps=2, progress=False)
    assert len(list(out.glob("shard-000000/*.png"))) == 5


def test_half_precision_weights_are_sampled():
    model = random_rbm(20, 10).bfloat16()
    assert model.sample(torch.arange(3), seed=0, steps=4).shape == (3, 20)


# scikit-learn


def test_a_machine_goes_to_scikit_learn_and_back():
    model = random_rbm(6, 5)
    estimator = model.to_sklearn(random_state=0)
    v = states(6)
    assert torch.allclose(torch.from_numpy(estimator.transform(v.numpy())), model.hidden_mean(v).double())
    assert torch.allclose(torch.from_numpy(estimator._free_energy(v.numpy())), model.free_energy(v).double())
    assert estimator.gibbs(v.numpy()).shape == (64, 6)
    assert estimator.score_samples(v.numpy()).shape == (64,)
    estimator.partial_fit(v.numpy()[:10])
    back = RBM.from_sklearn(model.to_sklearn(), visible=(2, 3), chains=4)
    assert back.shape == (2, 3) and back.chains.shape == (4, 6)
    assert all(torch.equal(p, q) for p, q in zip(back.parameters(), model.parameters(), strict=True))


def test_what_scikit_learn_cannot_hold_is_refused():
    from sklearn.neural_network import BernoulliRBM  # noqa: PLC0415

    with pytest.raises(ValueError, match="gaussian visible units"):
        RBM(3, 2, visible_kind="gaussian").to_sklearn()
    with pytest.raises(ValueError, match="BernoulliRBM is not fitted"):
        RBM.from_sklearn(BernoulliRBM())
    with pytest.raises(ValueError, match="wanted 6 bernoulli units"):
        RBM.from_sklearn(random_rbm(6, 5).to_sklearn(), visible=(7,))

"""MAF and IAF: their two directions, densities, gradients, bits and training."""

import pytest
import torch

from fastgen.models import IAF, MAF, load

MODELS = [MAF, IAF]


def randomised(flow, seed=4):
    torch.manual_seed(seed)
    for name, parameter in flow.named_parameters():
        if "bias" not in name:
            torch.nn.init.normal_(parameter, std=0.25)
    return flow.eval()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "options", [{}, {"order": "random", "residual": False}, {"classes": 3}, {"context": 2}]
)
def test_decoding_undoes_encoding(model, options):
    flow = randomised(model(5, steps=3, hidden=20, **options).double())
    g = torch.Generator().manual_seed(0)
    x = torch.randn(9, 5, generator=g, dtype=torch.float64)
    context = None
    if "classes" in options:
        context = torch.arange(9) % 3
    if "context" in options:
        context = torch.randn(9, 2, generator=g, dtype=torch.float64)
    z, log_det = flow.encode(x, context)
    again, back = flow.decode(z, context)
    torch.testing.assert_close(again, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back, -log_det, rtol=1e-8, atol=1e-8)
    if context is not None:
        assert not torch.allclose(flow.encode(x, context.flip(0))[0], z)


@pytest.mark.parametrize("model", MODELS)
def test_the_density_integrates_to_one(model):
    flow = randomised(model(2, steps=2, hidden=16).double())
    side = torch.linspace(-14, 14, 701, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        total = flow.log_prob(grid).exp().sum() * (side[1] - side[0]) ** 2
    assert abs(float(total) - 1) < 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_samples_and_their_densities_agree(model):
    flow = randomised(model(6, steps=2, hidden=24))
    ids = torch.arange(40)
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob(ids, seed=2)
        torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-4, atol=1e-4)
    assert torch.equal(flow.sample(ids, seed=2), x)


@pytest.mark.parametrize("model", MODELS)
def test_a_sample_has_the_same_bits_in_any_batch(model):
    flow = randomised(model(7, steps=2, hidden=30, classes=2))
    context = torch.arange(50) % 2
    whole = flow.sample(torch.arange(50), seed=1, context=context)
    for first, last in ((0, 1), (11, 12), (5, 38)):
        part = flow.sample(torch.arange(first, last), seed=1, context=context[first:last])
        assert torch.equal(part, whole[first:last])


@pytest.mark.parametrize("model", MODELS)
def test_gradients_agree_with_finite_differences(model):
    flow = randomised(model(3, steps=1, hidden=5, blocks=1).double())
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = dict(flow.named_parameters())

    def loss(x, *values):
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(_Density(flow), {f"flow.{k}": v for k, v in given.items()}, (x,))

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), *parameters.values()))


class _Density(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow.log_prob(x)


@pytest.mark.parametrize("model", MODELS)
def test_training_finds_a_correlated_normal(model, tmp_path):
    torch.manual_seed(0)
    mixed = torch.tensor([[1.0, 0.0], [0.9, 0.4]])
    data = torch.randn(512, 2) @ mixed.T
    flow = model(2, steps=2, hidden=16, blocks=1)
    flow.log_prob(data)  # the first batch sets the normalization
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = flow.loss(data)
        loss.backward()
        optimizer.step()
    truth = torch.distributions.MultivariateNormal(torch.zeros(2), mixed @ mixed.T)
    assert float(loss.detach()) < float(-truth.log_prob(data).mean()) + 0.03
    flow.save(tmp_path)
    ids = torch.arange(8)
    assert torch.equal(load(tmp_path).sample(ids, seed=1), flow.sample(ids, seed=1))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="order is 'sorted', wanted one of reverse, random"):
        MAF(3, order="sorted")
    with pytest.raises(ValueError, match="steps is 0, wanted at least 1"):
        IAF(3, steps=0)
    with pytest.raises(ValueError, match="scale_map is 'square'"):
        MAF(3, scale_map="square").sample(torch.arange(2), seed=0)

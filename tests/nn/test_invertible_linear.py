"""nn.InvertibleLinear: a rotation at first, its inverse kept while nothing changes, and what is folded in."""

import copy

import pytest
import torch

from fastgen.nn import ActNorm, FlowSequence, InvertibleLinear, invertible_linear

FORMS = [((3, 6, 4, 5), 1), ((3, 4, 5, 6), -1), ((9, 6), 1)]


def make(lu=True, dim=1, dtype=torch.float64):
    torch.manual_seed(4)
    layer = InvertibleLinear(6, lu=lu, dim=dim).to(dtype)
    with torch.no_grad():  # no longer a rotation
        for p in layer.parameters():
            p.add_(torch.randn(p.shape, dtype=dtype), alpha=0.1)
    return layer


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("lu", [False, True])
def test_it_starts_as_a_rotation(lu):
    layer = InvertibleLinear(17, lu=lu)
    weight, bias, log_abs_det = layer.make_map()
    assert bias is None and abs(log_abs_det) < 1e-5
    assert torch.allclose(weight @ weight.T, torch.eye(17, dtype=torch.float64), atol=1e-5)
    assert (weight.abs() > 0.3).sum() < 17 * 6 and (weight != 0).all()
    assert all(p.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("lu", [False, True])
@pytest.mark.parametrize("shape, dim", FORMS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "dtype, limit", [(torch.float32, 2e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.2)]
)
def test_there_and_back(dtype, limit, training, shape, dim, lu):
    layer, x = (
        make(lu, dim, torch.float32 if dtype == torch.bfloat16 else dtype).train(training),
        normal(*shape),
    )
    z, log_det = layer(x.to(dtype))
    back, minus = layer.inverse(z)
    assert (back - x).abs().max() < limit and torch.equal(minus, -log_det)
    pixels = x[0].numel() // 6
    wanted = pixels * torch.linalg.slogdet(layer.make_map().weight).logabsdet
    assert torch.allclose(log_det.double(), wanted.expand(len(x)), rtol=max(limit / 10, 1e-6))


@pytest.mark.parametrize("lu", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_of_the_parameters(inverse, lu):
    layer, x = make(lu), normal(2, 6, 3, 2)
    parameters = list(layer.parameters())

    def run(*values):
        with torch.nn.utils.stateless._reparametrize_module(
            layer, dict(zip((n for n, _ in layer.named_parameters()), values, strict=True))
        ):
            return (layer.inverse if inverse else layer)(x)

    assert torch.autograd.gradcheck(run, [p.detach().requires_grad_() for p in parameters], fast_mode=True)


def count_inversions(monkeypatch):
    calls = []
    counted = invertible_linear.inverse_map

    def inverse_map(*arguments):
        calls.append(1)
        return counted(*arguments)

    monkeypatch.setattr(invertible_linear, "inverse_map", inverse_map)
    return calls


def test_the_inverse_is_computed_once_until_a_parameter_changes(monkeypatch):
    calls, layer, z = count_inversions(monkeypatch), make().eval(), normal(3, 6)
    with torch.no_grad():
        first, _ = layer.inverse(z)
        assert torch.equal(layer.inverse(z)[0], first) and len(calls) == 1
        layer.log_scale += 0.5
        changed, _ = layer.inverse(z)
        assert len(calls) == 2 and not torch.equal(changed, first)
        layer.load_state_dict(make().state_dict())
        assert torch.equal(layer.inverse(z)[0], first) and len(calls) == 3
        layer.upper = torch.nn.Parameter(layer.upper + 0.1)
        assert not torch.equal(layer.inverse(z)[0], first) and len(calls) == 4


def test_a_layer_made_in_inference_mode_keeps_its_inverse_too(monkeypatch):
    calls, z = count_inversions(monkeypatch), normal(3, 6)
    with torch.inference_mode():
        layer = make().eval()
        first, _ = layer.inverse(z)
        assert torch.equal(layer.inverse(z)[0], first) and len(calls) == 1
        layer.log_scale += 0.5
        assert not torch.equal(layer.inverse(z)[0], first) and len(calls) == 2


def test_nothing_is_kept_in_training_or_where_gradients_are_wanted(monkeypatch):
    calls, layer, z = count_inversions(monkeypatch), make(), normal(3, 6)
    for mode in (True, False):
        layer.train(mode)
        for _ in range(2):
            x, _ = layer.inverse(z)
            x.sum().backward()
    assert len(calls) == 4 and layer.log_scale.grad is not None
    layer.requires_grad_(False)  # of the input alone
    leaf = z.clone().requires_grad_()
    with torch.inference_mode():
        layer.inverse(z)
    layer.inverse(leaf)[0].sum().backward()
    assert len(calls) == 5 and leaf.grad is not None


def test_a_copy_and_a_move_see_their_own_parameters():
    layer, z = make().eval(), normal(3, 6)
    with torch.no_grad():
        wanted, _ = layer.inverse(z)
        other = copy.deepcopy(layer)
        other.log_scale.add_(1)
        assert not torch.equal(other.inverse(z)[0], wanted) and torch.equal(layer.inverse(z)[0], wanted)
        assert layer.float().inverse(z.float())[0].dtype == torch.float32


@pytest.mark.parametrize("lu", [False, True])
def test_folded_it_is_both_layers_in_one_pass(lu):
    layer, norm, x = make(lu, dim=-1), ActNorm(6).double(), normal(5, 3, 4, 6)
    norm(2 * x + 1)
    both = FlowSequence([norm, layer]).eval()
    folded = layer.fold(norm).eval()
    for change in (0.0, 0.3):
        with torch.no_grad():
            norm.log_scale += change
            layer.parameters().__next__().mul_(1 + change)
            for one, two in ((folded, both), (folded.inverse, both.inverse)):
                for a, b in zip(one(x), two(x), strict=True):
                    assert torch.allclose(a, b, atol=1e-12)
    gradients = [torch.autograd.grad(run(x)[0].cos().sum(), both.parameters()) for run in (folded, both)]
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*gradients, strict=True))


def test_it_compiles_whole():
    layer, x = make().eval(), normal(3, 6, 2, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(compiled(x), layer(x), strict=True))


def test_bad_input_gets_a_sentence():
    for channels, error in ((0, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=f"channels is {channels}, wanted .*at least 1"):
            InvertibleLinear(channels)
    with pytest.raises(ValueError, match="dim is 0, wanted 1 or -1"):
        InvertibleLinear(3, dim=0)
    with pytest.raises(ValueError, match="norm is not initialised"):
        make(dim=-1).fold(ActNorm(6))
    layer = make(lu=False)
    with torch.no_grad():
        layer.matrix.zero_()
    for run in (layer, layer.inverse):
        with pytest.raises(ValueError, match="weight is singular"):
            run(normal(2, 6))

"""What the accelerated copy of any flow has to hold to; the tests of nflows, zuko and normflows share it."""

import copy
import io
import pickle

import torch

from fastgen import accelerate

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def stirred(model, dtype, seed=0):
    """The model in evaluation mode, with its parameters away from where they were, zeros included."""
    model = model.to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype), alpha=0.1)
    return model


def numbers(*shape, dtype, seed=1):
    """Standard normal numbers; some beyond the bounds of the splines."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float32).to(dtype)


def agree(got, wanted, dtype, exact=None):
    """All values within the tolerance, of the largest where that is more than 1.

    Where the original itself loses more in float32, against `exact`, within four times that.
    """
    scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
    lost = 0.0 if exact is None or not wanted.numel() else (wanted - exact).abs().max().item()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=max(tolerance * scale, 4 * lost))


def gradients(model, inputs, run):
    """Gradients of a sum over the values of `run(model, *inputs)`, of all inputs and parameters."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    values = run(model, *inputs)
    weights = [numbers(*v.shape, dtype=torch.float32, seed=7).to(v.dtype) for v in values]
    sum((v * w).sum() for v, w in zip(values, weights, strict=True)).backward()
    found = {f"input {k}": x.grad for k, x in enumerate(inputs)}
    return found | {name: parameter.grad for name, parameter in model.named_parameters()}


def check_agreement(plain, fast, inputs, run, dtype):
    """Values and gradients of `run(model, *inputs)`, a tuple, with the original and with the copy."""
    double = copy.deepcopy(plain).double()
    check_values(plain, fast, inputs, run, dtype, exact=run(double, *(x.double() for x in inputs)))
    wanted = gradients(copy.deepcopy(plain), inputs, run)
    exact = gradients(double, [x.double() for x in inputs], run)
    for name, got in gradients(copy.deepcopy(fast), inputs, run).items():
        assert (got is None) == (wanted[name] is None), name
        if got is not None:
            agree(got, wanted[name], dtype, exact[name])


def check_values(plain, fast, inputs, run, dtype, exact=None):
    """Values alone, such as samples, whose noise differs in another dtype."""
    with torch.no_grad():
        got, wanted = run(fast, *inputs), run(plain, *inputs)
    for one, other, right in zip(got, wanted, exact or [None] * len(got), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        agree(one, other, dtype, right)


def check_copies(fast, run, *inputs):
    """The accelerated model survives deepcopy, pickle, a state dictionary and a change of dtype."""
    with torch.no_grad():
        wanted = run(fast, *inputs)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), _saved(fast)):
            for got, value in zip(run(other, *inputs), wanted, strict=True):
                assert torch.equal(got, value)
        double = run(copy.deepcopy(fast).double(), *(x.double() for x in inputs))
        for got, value in zip(double, wanted, strict=True):
            assert got.dtype == torch.float64
            torch.testing.assert_close(got.to(value.dtype), value, rtol=1e-3, atol=1e-3)


def _saved(model):
    """A copy that got its state from a file."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    new = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    new.load_state_dict(torch.load(file))
    return new


def losses(model, loss, steps=5):
    """What `loss(model)` is in the course of some steps of Adam."""
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    seen = []
    for step in range(steps):
        torch.manual_seed(step)
        value = loss(model)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        seen.append(value.detach())
    return torch.stack(seen)


def check_state(plain, fast, before):
    """The original is what it was, and the copy has its names and values, in memory of its own."""
    state = plain.state_dict()
    assert list(state) == list(fast.state_dict())
    for name, value in fast.state_dict().items():
        assert torch.equal(value, state[name]) and torch.equal(state[name], before[name]), name
        assert value.numel() == 0 or value.data_ptr() != state[name].data_ptr(), name
    assert repr(plain) == repr(fast)
    assert not any(type(m).__module__.startswith("fastgen") for m in plain.modules())


def check_own_networks_and_hooks(layer, features):
    """A masked autoregressive layer keeps its own inverse once its network is a subclass or has hooks."""
    _, report = accelerate(layer)
    assert not any("inverse" in part.name for part in report.kept)
    own = type("Own", (type(layer.autoregressive_net),), {})
    own.forward = lambda self, *args: 0.5 * super(own, self).forward(*args)
    hooked, halved = copy.deepcopy(layer), copy.deepcopy(layer)
    hooked.autoregressive_net.final_layer.register_forward_hook(lambda module, args, out: 0.5 * out)
    halved.autoregressive_net.__class__ = own
    z = numbers(4, features, dtype=torch.float64)
    for plain, reason in ((hooked, "hooks"), (halved, "Own")):
        fast, report = accelerate(plain)
        assert any("inverse" in part.name and reason in part.note for part in report.kept)
        torch.testing.assert_close(fast.inverse(z), plain.inverse(z))

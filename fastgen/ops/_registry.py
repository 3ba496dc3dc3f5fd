"""How an op is put together: one schema in torch's dispatcher, a fake, and one function for each backend.

The schema `fastgen::<op>` is defined here, in Python, so that it exists whether or not the C++ extension
does. Its implementation checks the values (shapes and dtypes were checked by the public function), asks
`fastgen.backends` which implementation runs, and calls it: one crossing of the dispatcher for a whole loop of
steps. Where the dispatcher would only come back here, the public function goes to the implementation without
it (`register`): between small calls that crossing is most of the time. Ops that are called for some
microseconds of work go from the public function straight to C++ (`direct`), which checks plain arguments in a
fraction of the time and leaves all others to the long way.

The backward pass of a differentiable op is an op of its own, `<op>_backward`, found in the same files; its
gradients are differentiable in turn through the reference (`vjp`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import _any_requires_grad, _are_functorch_transforms_active
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction
from torch.torch_version import TorchVersion

from fastgen import backends, native
from fastgen.ops import _forward_mode

try:
    from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._autograd import _profiler_enabled
except ImportError:  # a release of torch that has no such words: every call goes through the dispatcher
    SAYS_WHO_WATCHES = False
else:
    SAYS_WHO_WATCHES = True

# Whether torch's table for the exchange of tensors can be relied on: that of 2.11 crashed.
HAS_EXCHANGE = TorchVersion(torch.__version__) >= "2.13"

LIBRARY = torch.library.Library("fastgen", "DEF")


@dataclass(frozen=True)
class Op:
    """One op: its word, what the dispatcher knows of it, and its implementations by backend.

    A differentiable op has `setup_context(ctx, inputs, output)` and `backward(ctx, *grads)`, as
    `torch.library.register_autograd` takes them.
    """

    name: str
    schema: str
    fake: Callable[..., Any]
    implementations: dict[str, Callable[..., Any]]
    check_values: Callable[..., None]
    setup_context: Callable[..., None] | None = None
    backward: Callable[..., Any] | None = None


OPS: dict[str, Op] = {}


_PLAIN = frozenset((Tensor, torch.nn.Parameter, int, float, bool, str, type(None)))


def register(op: Op) -> Callable[..., Any]:
    """Define `fastgen::<name>`, let tests and benchmarks find it, and return how public functions call it.

    That is past the dispatcher if no mode, tracer, profiler, transform or gradient wants to know of the call.
    """
    OPS[op.name] = op
    for backend, function in op.implementations.items():
        backends.register(op.name, backend, function)

    def run(*arguments: Any) -> Any:
        op.check_values(*arguments)
        _, implementation = backends.choose(op.name, _device_of(arguments))
        return implementation(*arguments)

    def call(*arguments: Any) -> Any:
        return overload(*arguments) if _needs_dispatcher(arguments) else run(*arguments)

    def batched(info: Any, in_dims: Any, *arguments: Any) -> Any:
        raise NotImplementedError(
            f"{op.name} is batched already: put the mapped dimension into the batch instead of using vmap"
        )

    LIBRARY.define(f"{op.name}{op.schema}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(op.name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastgen::{op.name}", op.fake, lib=LIBRARY)
    torch.library.register_vmap(f"fastgen::{op.name}", batched, lib=LIBRARY)
    LIBRARY.impl(op.name, _with_gradient(op), "Autograd")
    overload = getattr(torch.ops.fastgen, op.name).default
    return call


def direct(name: str) -> Callable[..., Any]:
    """Return the way from the public function of an op straight to its C++ implementation.

    It takes what the binding's direct function takes (csrc/torch/direct.h), in that order, and returns None
    if the call has to go the long way: somebody watches, another backend was asked for, or the arguments
    are not plain, or wrong.
    """
    function = getattr(native.module, name, None) if HAS_EXCHANGE else None

    def run(*arguments: Any) -> Any:
        if function is None or _is_watched() or not backends.native_is_welcome():
            return None
        return function(*arguments)

    return run


def _is_watched() -> bool:
    """Whether a mode, tracer, profiler or transform wants to know of every call."""
    return (
        not SAYS_WHO_WATCHES
        or torch.compiler.is_compiling()
        or _profiler_enabled()
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
        or _are_functorch_transforms_active()
        or _forward_mode.is_on()
        or _get_tracing_state() is not None
    )


def _needs_dispatcher(arguments: tuple[Any, ...]) -> bool:
    """Whether the dispatcher has more to do for a call than to pass it on."""
    return (
        _is_watched()
        or not _PLAIN.issuperset(map(type, arguments))
        or (torch.is_grad_enabled() and _any_requires_grad(*arguments))
        or _device_of(arguments) == "meta"
    )


def _with_gradient(op: Op) -> Callable[..., Any]:
    """What runs where gradients or tangents may be wanted, also within a transform of `torch.func`.

    The class that `torch.library.register_autograd` makes for an op is refused there; one of a single level
    is what a transform makes of any function by itself.
    """
    overload = getattr(torch.ops.fastgen, op.name).default

    def below(arguments: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*arguments)

    def forward(ctx: Any, *arguments: Any) -> Any:
        # A function's own forward pass has no gradients; the transforms around this one may want theirs.
        with torch.set_grad_enabled(_are_functorch_transforms_active()):
            output = below(arguments)
        assert op.setup_context is not None
        op.setup_context(ctx, arguments, output)
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        assert op.backward is not None
        return op.backward(ctx, *grads)

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(f"{op.name}_with_gradient", (_SingleLevelFunction,), members)

    reference = op.implementations["reference"] if op.backward is not None else None

    def run(*arguments: Any) -> Any:
        if _forward_mode.has_tangents(arguments):
            return _forward_mode.with_tangents(op.name, run, reference, arguments)
        if op.backward is None or not (torch.is_grad_enabled() and _any_requires_grad(*arguments)):
            return below(arguments)
        with enable_single_level_autograd_function():
            return function.apply(*arguments)  # type: ignore[attr-defined]

    return run


def vjp(
    function: Callable[..., Any], inputs: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs` through plain PyTorch, given those of what `function(*inputs)` returns.

    Where gradients are enabled, as in the backward pass of `create_graph=True`, the result is differentiable
    in its turn. Inputs that are not floating get None, and so do those that the result does not depend on.
    """
    if _are_functorch_transforms_active():
        return _vjp_within_transform(function, inputs, grads)
    # What a transform that has ended left behind stands for another tensor, through which gradients go.
    inputs = [torch._C._functorch.unwrap_if_dead(x) for x in inputs]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [
            x if again and x.requires_grad else x.detach().requires_grad_(x.is_floating_point())
            for x in inputs
        ]
        outputs = function(*leaves)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        wanted = [x for x in leaves if x.requires_grad]
        if not pairs or not wanted:
            return (None,) * len(leaves)
        found = torch.autograd.grad(
            [y for y, _ in pairs], wanted, [g for _, g in pairs], create_graph=again, allow_unused=True
        )
    by_leaf = iter(found)
    return tuple(next(by_leaf) if x.requires_grad else None for x in leaves)


def _vjp_within_transform(
    function: Callable[..., Any], inputs: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The same within a transform of `torch.func`, which takes no leaves of plain autograd."""
    floating = [x.is_floating_point() for x in inputs]

    def wanted(*given: Tensor) -> tuple[Tensor, ...]:
        left = iter(given)
        outputs = function(*(next(left) if f else x for f, x in zip(floating, inputs, strict=True)))
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        return tuple(y for y, g in zip(outputs, grads, strict=True) if g is not None)

    pull: Any = torch.func.vjp(wanted, *(x for f, x in zip(floating, inputs, strict=True) if f))[1]
    found = iter(pull(tuple(g for g in grads if g is not None)))
    return tuple(next(found) if f else None for f in floating)


def without_half(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Hands bfloat16 and float16 to `function` as float32, and rounds both of its results once."""
    halves = (torch.bfloat16, torch.float16)

    def run(first: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        if first.dtype not in halves:
            return function(first, *arguments)
        given = (first, *arguments)
        one, two = function(*(a.float() if isinstance(a, Tensor) and a.dtype in halves else a for a in given))
        return one.to(first.dtype), two.to(first.dtype)

    return run


def _device_of(arguments: tuple[Any, ...]) -> str:
    for a in arguments:
        if isinstance(a, Tensor):
            return "cpu" if a.is_cpu else a.device.type
    raise TypeError("no argument is a tensor")

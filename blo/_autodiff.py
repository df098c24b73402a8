"""Derivatives in torch: by a retained graph outside `torch.func` transforms, and by `torch.func` inside them."""

from __future__ import annotations

import cmath
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from blo._flag import Flag
from blo._torch import forward_mode, functorch, load_forward_mode

# Whether the caller runs inside `torch.func.grad`, `vmap` or a similar transform: there the value of a tensor must not
# decide a branch, and `requires_grad_` raises an error.
from blo._torch import transforms_active as transforms_active
from blo.errors import DerivativeError, StructureError

#: Torch's error messages for operations that cannot be differentiated twice.
#: A donated buffer is memory of a compiled function that its first backward pass reuses.
_ONCE = re.compile(
    "derivative for .* is not implemented|double backward|differentiate twice|donated buffer|"
    "don't support automatic differentiation"
)


#: On where problems are made again for a solve that has checked their parameters.
repeated = Flag("a problem is made again")


def all_true(*conditions: Tensor) -> bool:
    """Return whether every entry of each is true or not zero, in every lane of an enclosing `vmap` as well.

    One host synchronisation.
    """
    flags = [plain(condition) for condition in conditions]
    if flags[0].is_cpu:  # there a value is read in a tenth of the time of an operation
        return all(bool(flag if flag.numel() == 1 else flag.all()) for flag in flags)
    flags = [flag.all() for flag in flags]
    return bool(flags[0] if len(flags) == 1 else torch.stack(flags).all())


def stride(b: Tensor) -> int:
    """Return the number of iterations between two tests of the convergence flags.

    A test stalls an accelerator's queue, and costs nothing on a CPU.
    """
    return 1 if b.device.type == "cpu" else 8


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor inside the wrappers of `torch.func` transforms, with the lanes of every enclosing `vmap`."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)  # `vmap` shows one lane of this
    return tensor


def as_tensor(value: Tensor | complex) -> Tensor:
    """Return a tensor as it is, and a number or boolean as a tensor on the CPU, whatever torch's default device is."""
    return value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")


def settled(tensor: Tensor) -> Tensor:
    """Return a tensor whose tangent in forward mode, if it has one, has the dtype of the tensor.

    For x of shape `()` in single precision, torch gives 0.1 x and x + 1 a tangent in double precision, which later
    operations refuse or spread.
    """
    if not forward_mode() or tensor.dtype is torch.float64 or tensor.device.type == "mps":  # which has no float64
        return tensor
    return tensor.to(torch.float64).to(tensor.dtype)  # each conversion converts the tangent as well


def unmapped(tensor: Tensor) -> Tensor:
    """Return the tensor inside the wrappers of all enclosing `vmap`s, with all lanes: the one with a recorded graph."""
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def recordings(tensors: Iterable[Tensor]) -> int:
    """Return how many differentiations may record what is computed from some tensors, by `torch.func` or autograd."""
    stack = functorch.get_interpreter_stack() or ()
    inside = sum(level.key() != functorch.TransformType.Vmap for level in stack)
    return inside + any(plain(tensor).requires_grad for tensor in tensors)


def graphs(tensor: Tensor) -> list[Node | None]:
    """Return the nodes that made a tensor, from that of the innermost `torch.func` transform to that of autograd."""
    found = []
    while functorch.is_functorch_wrapped_tensor(tensor):
        if not functorch.is_batchedtensor(tensor):  # `vmap` records nothing itself
            found.append(tensor.grad_fn)
        tensor = functorch.get_unwrapped(tensor)
    return [*found, tensor.grad_fn]


def sums_are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether the sum of all entries is finite. If it is, then no entry is NaN or infinite.

    One pass over each tensor, and one host synchronisation. A sum of finite entries may overflow.
    """
    total: Tensor | None = None
    for tensor in map(plain, tensors):
        # An infinity and its negative add up to NaN, so no sum hides them.
        part = tensor if tensor.numel() == 1 else tensor.sum()
        if not part.is_cpu:
            total = part if total is None else total.to(part.device) + part
        elif not cmath.isfinite(part.item()):
            return False
    return total is None or cmath.isfinite(total.item())


def all_true_on_cpu(condition: Tensor) -> bool:
    """Return whether every entry is true, on the CPU; False on an accelerator, where the test would stall the queue.

    Use it only to skip work: results must not depend on it.
    """
    return condition.is_cpu and all_true(condition)


def choose(condition: Tensor, chosen: Tensor, other: Tensor | float) -> Tensor:
    """Return `torch.where(condition, chosen, other)`, without a copy where the condition is seen to hold everywhere."""
    return chosen if chosen is other or all_true_on_cpu(condition) else torch.where(condition, chosen, other)


def in_lanes(lanes: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Return one tensor in some lanes and the other elsewhere; the other where the tensors are shared by all lanes.

    Args:
        lanes: booleans of shape `lanes`.
        chosen: shape `(*lanes, ...)`.
        other: likewise.
    """
    if chosen is other or other.device != lanes.device or other.shape[: lanes.ndim] != lanes.shape:
        return other
    return torch.where(lanes.reshape(lanes.shape + (1,) * (other.ndim - lanes.ndim)), chosen, other)


@contextlib.contextmanager
def _forward_named() -> Iterator[None]:
    """Explain the error of an operation that torch differentiates only in reverse mode.

    Raises:
        StructureError: in place of torch's error.
    """
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        # Forward mode represents a zero tangent by a ZeroTensor, to which some of torch's formulas write in place.
        if not any(words in str(error) for words in ("forward AD", "ZeroTensors are immutable")):
            raise
        raise StructureError(
            f"an operation of the objective has no derivative in forward mode: {str(error).splitlines()[0]} "
            "Use products='reverse' and mode='reverse', the defaults, or replace the operation by others."
        ) from error


def jvp(function: Callable[[Tensor], Any], point: Tensor, direction: Tensor) -> Any:
    """Return the derivative of a function along a direction, by forward mode."""
    load_forward_mode()
    # Forward mode writes to its tangents in place, which fails for a vector that is expanded over lanes.
    with _forward_named(), repeated.on():
        return torch.func.jvp(function, (point.contiguous(),), (direction.contiguous(),))[1]


def jacobian(function: Callable[..., Tensor], points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the Jacobian in each argument, shape `(*output, *argument)`, by forward mode."""
    load_forward_mode()
    with _forward_named(), repeated.on():
        # The `vmap` over columns refuses random draws by default. All columns must be derivatives of one function, so
        # they draw the same numbers.
        found: tuple[Tensor, ...] = torch.func.jacfwd(function, tuple(range(len(points))), randomness="same")(*points)
    return found


def value_and_gradient(function: Callable[[Tensor], Tensor], z: Tensor, *, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Return the function at `z`, with its graph, and d(sum of function)/dz, of the shape of `z`, from one evaluation.

    Outside transforms the gradient is plain autograd, which lets modules update their buffers (train-mode
    BatchNorm), and it is cut off from the graph unless `create_graph`. Inside them the graph is always kept.

    Raises:
        StructureError: if the value does not depend on `z`.
    """
    if transforms_active():

        def summed(point: Tensor) -> tuple[Tensor, Tensor]:
            value = function(point)
            return value.sum() if value.ndim else value, value

        slope, value = torch.func.grad(summed, has_aux=True)(z)
        return value, slope
    # A z that requires grad is used itself: with `create_graph` the gradient must be a function of it, not of a copy.
    point = z if z.requires_grad else z.detach().requires_grad_()
    with torch.enable_grad():
        value = function(point)
        if not value.requires_grad:
            raise StructureError(f"`objective` must depend on z, but its value carries no graph. {_look()}")
        total = value.sum() if value.ndim else value  # a needless sum would also be differentiated twice
        with differentiated_twice() if create_graph else contextlib.nullcontext():
            (found,) = torch.autograd.grad(total, point, create_graph=create_graph, allow_unused=True)
    if found is None:
        raise StructureError(f"`objective` must depend on z, but its value depends on other tensors alone. {_look()}")
    return value, found


def _look() -> str:
    if torch.is_inference_mode_enabled():
        return "Under torch.inference_mode() nothing has a graph: use torch.no_grad() around the call instead."
    return "Look for .detach(), .item(), torch.no_grad() or NumPy inside it."


def live(leaves: Iterable[Tensor]) -> list[Tensor]:
    """Return detached leaves; those of floating point require grad."""
    return [leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]


def add(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Return the sum of two cotangents, where None is zero."""
    if left is None or right is None:
        return right if left is None else left
    return left + right


def pullback(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], *, last: bool = False
) -> list[Tensor | None]:
    """Return sum_i (d output_i / d input_j)^T cotangent_i for each input, None where there is no dependence.

    The graph is kept, so that one graph of grad g serves every Hessian-vector product and the cross term; the `last`
    product frees it while it runs.
    """
    # An output without a graph adds zero to the sum, but `autograd.grad` raises an error for it.
    live = [(out, cotangent) for out, cotangent in zip(outputs, cotangents, strict=True) if out.requires_grad]
    if not live or not inputs:
        return [None] * len(inputs)
    values, directions = zip(*live, strict=True)
    with differentiated_twice():
        return list(torch.autograd.grad(values, inputs, directions, retain_graph=not last, allow_unused=True))


# Entered for each product: a generator costs ten times more.
class differentiated_twice(contextlib.ContextDecorator, contextlib.AbstractContextManager[object]):
    """Explain the error of an operation without a second derivative.

    Raises:
        DerivativeError: in place of torch's own error.
    """

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, DerivativeError):
            return
        reason = str(error).split("\n")[0].rstrip(".")
        if not _ONCE.search(reason):
            return
        raise DerivativeError(
            f"this strategy needs second derivatives, but an operation in the objective has none in torch: {reason}. "
            "Use products='finite-difference', as in Implicit(products='finite-difference'), which needs only first "
            "derivatives. Attention has second derivatives with functionalize(..., fused_attention=False), and a "
            "module has them without torch.compile."
        ) from error

"""The two faces of autodiff in torch: a retained graph outside `torch.func` transforms, `torch.func` inside them."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blo.errors import StructureError


def transforms_active() -> bool:
    """Tell whether the caller runs inside `torch.func.grad`, `vmap` or a relative.

    There no tensor may decide a branch, and `requires_grad_` is refused.
    """
    return bool(torch._C._are_functorch_transforms_active())


def all_true(condition: Tensor) -> bool:
    """Tell whether every entry is true, in every lane of an enclosing `vmap` as well.

    One host synchronisation.
    """
    return bool(plain(condition).all())


def stride(b: Tensor) -> int:
    """Return the number of iterations between two looks at the convergence flags.

    A look stalls an accelerator's queue, and costs nothing on a CPU.
    """
    return 1 if b.device.type == "cpu" else 8


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor that those of `torch.func` transforms stand for, with the lanes of every enclosing `vmap`."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)  # what `vmap` shows is one lane of this
    return tensor


def surely(condition: Tensor) -> bool:
    """Tell whether every entry is true, where that can be seen without waiting; false on an accelerator.

    For work that may be spared. What is computed must not depend on it.
    """
    return condition.device.type == "cpu" and all_true(condition)


def length(vectors: Tensor) -> Tensor:
    """Return the 2-norm of each vector, shape `(*lanes, 1)`; squares of small single precision numbers underflow."""
    wide = vectors.dtype is not torch.float64 and vectors.device.type != "mps"
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=torch.float64 if wide else None)
    return norm.to(vectors.dtype) if wide else norm


def in_lanes(lanes: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Return one tensor in some lanes and the other elsewhere; the other where the tensors are shared by all lanes.

    Args:
        lanes: booleans of shape `lanes`.
        chosen: shape `(*lanes, ...)`.
        other: likewise.
    """
    if other.device != lanes.device or other.shape[: lanes.ndim] != lanes.shape:
        return other
    return torch.where(lanes.reshape(lanes.shape + (1,) * (other.ndim - lanes.ndim)), chosen, other)


@functools.cache
def _load_forward_mode() -> None:
    """Import the derivatives that torch scripts on the first use of forward mode, which warns of deprecation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def jvp(function: Callable[[Tensor], Any], point: Tensor, direction: Tensor) -> Any:
    """Return the derivative of a function along a direction, by forward mode."""
    _load_forward_mode()
    # Forward mode writes into its tangents, which a vector expanded over lanes does not bear.
    return torch.func.jvp(function, (point.contiguous(),), (direction.contiguous(),))[1]


def jacobian(function: Callable[..., Tensor], points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the Jacobian in each argument, shape `(*output, *argument)`, by forward mode."""
    _load_forward_mode()
    found: tuple[Tensor, ...] = torch.func.jacfwd(function, tuple(range(len(points))), randomness="same")(*points)
    return found


def gradient(function: Callable[[Tensor], Tensor], z: Tensor, *, create_graph: bool) -> Tensor:
    """Return d(sum of function)/dz, of the shape of `z`.

    Outside transforms the gradient is plain autograd, which lets modules update their buffers (train-mode
    BatchNorm), and it is cut off from the graph unless `create_graph`. Inside them the graph is always kept.

    Raises:
        StructureError: if the value was computed without regard to `z`.
    """
    return value_and_gradient(function, z, create_graph=create_graph)[1]


def value_and_gradient(function: Callable[[Tensor], Tensor], z: Tensor, *, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Return the function at `z`, with its graph, and its gradient, from one evaluation; see `gradient`."""
    if transforms_active():

        def summed(point: Tensor) -> tuple[Tensor, Tensor]:
            value = function(point)
            return value.sum() if value.ndim else value, value

        slope, value = torch.func.grad(summed, has_aux=True)(z)
        return value, slope
    point = z if z.requires_grad else z.detach().requires_grad_()
    with torch.enable_grad():
        value = function(point)
        if not value.requires_grad:
            raise StructureError(f"`objective` must depend on z, but its value carries no graph. {_look()}")
        total = value.sum() if value.ndim else value  # every operation would be differentiated twice
        (found,) = torch.autograd.grad(total, point, create_graph=create_graph, allow_unused=True)
    if found is None:
        raise StructureError(f"`objective` must depend on z, but its value depends on other tensors alone. {_look()}")
    return value, found


def _look() -> str:
    if torch.is_inference_mode_enabled():
        return "Under torch.inference_mode() nothing has a graph: use torch.no_grad() around the call instead."
    return "Look for .detach(), .item(), torch.no_grad() or NumPy inside it."


def add(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Return the sum of two cotangents, None standing for zero."""
    if left is None or right is None:
        return right if left is None else left
    return left + right


def pullback(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], *, last: bool = False
) -> list[Tensor | None]:
    """Return sum_i (d output_i / d input_j)^T cotangent_i for each input, None where there is no dependence.

    The graph is kept, so that one graph of grad g serves every Hessian-vector product and the cross term; the `last`
    product frees it on the way.
    """
    live = [(out, cotangent) for out, cotangent in zip(outputs, cotangents, strict=True) if out.requires_grad]
    if not live or not inputs:
        return [None] * len(inputs)
    values, directions = zip(*live, strict=True)
    return list(torch.autograd.grad(values, inputs, directions, retain_graph=not last, allow_unused=True))

"""Solver settings that are functions of theta."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import all_true, as_tensor, plain
from blo._layout import Layout
from blo._types import Tree
from blo.errors import StructureError
from blo.solvers._base import Problem, Solver

if TYPE_CHECKING:  # in the standard library from Python 3.13
    from typing_extensions import TypeIs

__all__ = ["functions_of_theta", "rate", "varies"]


def varies(setting: Any) -> TypeIs[Callable[[Tree], Any]]:
    """Return whether a setting is a function of theta; a torchopt optimiser, which has `update`, is not."""
    return callable(setting) and not hasattr(setting, "update")


def functions_of_theta(solver: Solver) -> dict[str, Callable[[Tree], Any]]:
    """Return the settings of a solver that are functions of theta, with their names as keys."""
    settings = {name: getattr(solver, name) for name in solver.may_vary}
    return {name: setting for name, setting in settings.items() if varies(setting)}


def rate(
    problem: Problem, function: Callable[[Tree], Tree], name: str, steps: int, index: Tensor | tuple[()]
) -> Tensor:
    """Return the step size or momentum of one step, shape `(*lanes, 1)`, or `(*lanes, n)` with a value per coordinate.

    The value is computed from theta in every step and not stored in the solver's state. So a step that is repeated in a
    backward pass depends on the theta of that pass.

    Args:
        problem: the problem at one theta.
        function: returns a scalar, `steps` scalars, a tensor of shape `(steps,)`, or a tree like z.
        name: `"step"`, which must be positive and finite, or `"momentum"`, which must lie in [0, 1).
        steps: the number of steps of one call.
        index: the number of the step, an integer of shape `()` on the CPU.

    Raises:
        StructureError: if the function returns anything else, or a value with two possible meanings.
        ValueError: for values outside the range.
    """
    layout = problem.layout
    values: Tensor = problem.at_theta(function, name, lambda given: _read(given, name, layout, steps))
    axis = values.ndim - 2 - len(layout.lanes)
    if values.shape[axis] == 1 or not isinstance(index, Tensor):
        return values.select(axis, 0)
    # Under `vmap` the index has one entry per lane, and lanes that have stopped no longer count: the largest is right.
    return values.select(axis, int(plain(index).max()) % steps)


def _read(given: Any, name: str, layout: Layout, steps: int) -> Tensor:
    """Return the values, shape `(1 or steps, *lanes or ones, 1 or n)`."""
    # With as many steps as coordinates, a tensor of this size has two meanings: raise an error instead of guessing.
    ones = (1,) * len(layout.lanes)
    listed = isinstance(given, list | tuple) and len(given) == steps and all(map(_is_scalar, given))
    each_step = listed or (isinstance(given, Tensor) and tuple(given.shape) == (steps,))
    each_coordinate = _is_like(given, layout)
    if each_step and each_coordinate and (steps > 1 or layout.size > 1):
        raise StructureError(
            f"`{name}(theta)` may mean one value per step or one per coordinate, because there are {steps} of each. "
            "For one per step, return `list(values)` or choose another `max_steps`; for one per coordinate, make z and "
            'the value dicts like {"z": tensor}.'
        )
    if _is_scalar(given) or each_step:
        values = torch.stack([as_tensor(value) for value in given]) if listed else as_tensor(given)
        values = values.reshape(-1, *ones, 1)
    elif each_coordinate:
        values = layout.ravel(tree.map(lambda leaf: leaf.to(layout.device, layout.dtype), given)).unsqueeze(0)
    else:
        found = [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in tree.leaves(given)]
        raise StructureError(
            f"`{name}(theta)` must return a scalar, {steps} scalars or a tensor of shape ({steps},) with one value per "
            f"step, or a tree like z, but returned {found} in a {type(given).__name__}."
        )
    values = values.to(layout.device, layout.dtype)
    _require_range(values, name)
    return values


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)


def _is_like(given: Any, layout: Layout) -> bool:
    leaves, spec = tree.structure(given)
    shapes = [layout.lanes + tuple(shape) for shape in layout.shapes]
    tensors = all(isinstance(leaf, Tensor) for leaf in leaves)
    return tensors and spec == layout.spec and [tuple(leaf.shape) for leaf in leaves] == shapes


def _require_range(values: Tensor, name: str) -> None:
    if torch.compiler.is_compiling():  # a compiled graph cannot branch on the value of a tensor
        return
    found = values.detach()
    if name == "step":
        allowed, rule = torch.isfinite(found) & (found > 0), "be positive and finite"
    else:
        allowed, rule = (found >= 0) & (found < 1), "lie in [0, 1)"
    if not all_true(allowed):
        shown = plain(found)[~plain(allowed)].flatten()[:3].tolist()
        raise ValueError(
            f"`{name}(theta)` must {rule}, but has values like {shown}. Parametrise a step size by its logarithm, and "
            "momentum by a sigmoid."
        )

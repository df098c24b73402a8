"""The multipliers of a set against the envelope theorem: the derivatives of the optimal value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blo import tree
from blo._layout import Layout
from blo._types import Tree
from blo.sets import Intersection, Product, Set, Tangent
from blo.testing._suite import Suite, normal, sides

#: Names of multipliers that belong to inequalities in every set, see `blo.duals`.
_INEQUALITIES = ("low", "high", "radius", "cap", "inequalities")


def check_multipliers(
    suite: Suite, constraint: Set, layout: Layout, point: Tensor, tangent: Tangent, step: float
) -> None:
    """Check `Tangent.duals` at the projection x of a point, where the constraints and their multipliers are unique.

    The value `1/2 |x - point|^2` falls by y t if a right-hand side grows by t, and rises by y t for the side `low`.
    A right-hand side can be moved if the set is a dataclass with a field of the multiplier's name; of the others, those
    of inequalities must not be negative.

    Args:
        suite: collects the properties.
        constraint: the set before `fit`.
        layout: of z.
        point: shape `(*lanes, n)`.
        tangent: of the fitted set at the projection, for the gradient `x - point`.
        step: displacement of central differences.
    """
    if tangent.duals is None or isinstance(constraint, Product | Intersection):
        return  # the multipliers of parts are those of other sets
    duals = tangent.duals(layout)
    assert isinstance(duals, dict)
    generator = torch.Generator().manual_seed(int(point.numel()))
    held: set[str] = {field.name for field in fields(constraint)} if is_dataclass(constraint) else set()
    for name, multipliers in duals.items():
        if name in _INEQUALITIES:
            least = min(float(y.min()) if y.numel() else 0.0 for y in tree.leaves(multipliers))
            text = f"the least one of {name!r} is {least:.2e}"
            suite.require("multipliers of inequalities are not negative", least >= -1e-9, text)
        if name not in held or getattr(constraint, name) is None:
            continue
        direction = tree.map(lambda y: normal(generator, *y.shape).to(y), multipliers)
        found = tree.dot(multipliers, direction) * (1.0 if name == "low" else -1.0)
        slope = sides(_value(constraint, name, direction, layout, point), step)
        text = f"the derivative of the optimal value by {name!r}"
        suite.near("multipliers are derivatives of the optimal value", found, slope, 1e-6, text)


def _value(constraint: Set, name: str, direction: Tree, layout: Layout, point: Tensor) -> Callable[[float], Tensor]:
    """Return the optimal value as a function of how far the right-hand side is moved along a direction."""
    given = getattr(constraint, name)

    def value(t: float) -> Tensor:
        whole = isinstance(given, int | float | Tensor)  # one value for all leaves of z
        moved = tree.map(lambda d: given + t * d, direction) if whole else tree.map(_along(t), given, direction)
        changes: dict[str, Any] = {name: moved}
        x = replace(constraint, **changes).fit(layout).prox(point, 1.0)  # type: ignore[type-var]
        return 0.5 * (x - point).square().sum()

    return value


def _along(t: float) -> Callable[[Any, Tensor], Any]:
    return lambda bound, d: bound + t * d

"""The interface of penalties."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from blo._layout import Layout
from blo._term import Term, can_validate, failing, fit_coordinates, fit_per_lane, per_lane
from blo._types import Tree
from blo.errors import StructureError


class Penalty(Term):
    """A convex, non-smooth function added to the lower objective."""

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """Return the penalty, shape `lanes`, of z of shape `(*lanes, n)`."""


def require_weight(value: Tree, name: str, validate: bool) -> None:
    """Raise if a number or tensor has a negative entry or a NaN.

    Values of a tensor are read only if `validate` is true.

    Raises:
        ValueError: in that case; the message names `name`.
    """
    if isinstance(value, Tensor) and not (validate and can_validate()):
        return
    if isinstance(value, int | float | Tensor):
        bad = failing(value >= 0)
        if bool(bad.any()):
            raise ValueError(
                f"`{name}` must be at least 0, but {int(bad.sum())} of {bad.numel()} values are negative or NaN. "
                "If it is learned, learn its logarithm."
            )


def fit_weight(value: Tree, layout: Layout, name: str, validate: bool) -> Tensor | float:
    """Return a number unchanged, and a tensor or tree as a tensor with all axes of `(*lanes, n)`, to broadcast.

    A tensor of shape `lanes` is one value per lane; any other is broadcast to the shapes of z.

    Raises:
        StructureError: if it does not fit, or fits in both ways.
        ValueError: if it is a tree with a negative entry or a NaN, as far as `require_weight` may read it.
    """
    if not isinstance(value, int | float | Tensor):
        fitted = fit_coordinates(value, layout, name)
        require_weight(fitted, name, validate)
        return fitted
    if not isinstance(value, Tensor) or not layout.lanes or tuple(value.shape) != layout.lanes:
        return fit_coordinates(value, layout, name)
    batch = layout.lanes[0]
    if batch > 1 and any(shape and shape[-1] == batch for shape in layout.shapes):
        raise StructureError(
            f"`{name}` has shape {tuple(value.shape)}, which may mean one value per problem or one per coordinate, "
            "since z has as many of each. Write `weight[:, None]` for the first or `weight.expand_as(z)` for the "
            "second."
        )
    return per_lane(fit_per_lane(value, layout, name))

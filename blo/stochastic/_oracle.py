"""The two objectives on flat tensors and new minibatches: the only access of an algorithm to the problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blo._autodiff import pullback, value_and_gradient
from blo._failures import Checks
from blo._layout import Layout
from blo._types import Tree
from blo.errors import StructureError
from blo.stochastic._batches import Stream
from blo.stochastic._descent import Descent


class Directions(NamedTuple):
    """The negative descent directions of the three variables, unbiased if the two batches are drawn independently.

    Attributes:
        theta: `grad_theta f - B^T q`, shape `(p,)`.
        z: `grad_z g`, shape `(n,)`.
        q: `H q - grad_z f`, shape `(n,)`.
    """

    theta: Tensor
    z: Tensor
    q: Tensor


@dataclass(frozen=True)
class Sample:
    """An objective on one batch, as a function of theta of shape `(p,)` and z of shape `(n,)`.

    H is the Hessian of the objective in z, and B its mixed derivative d2/dz dtheta.
    """

    function: Any
    batch: Any
    theta_layout: Layout
    z_layout: Layout
    name: str
    checks: Checks

    def gradients(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients in theta and in z; zero for a variable that the objective does not depend on."""
        with torch.enable_grad():
            theta, z = _leaf(theta), _leaf(z)
            value = self._value(theta, z)
            in_theta, in_z = torch.autograd.grad(value, (theta, z), allow_unused=True)
        # An upper objective without theta is common, but a lower one makes the hypergradient's implicit part zero.
        if in_theta is None and self.name == "lower":
            self.checks.constant()
        return torch.zeros_like(theta) if in_theta is None else in_theta, torch.zeros_like(z) if in_z is None else in_z

    def slope(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the gradient in z."""
        return value_and_gradient(lambda point: self._value(theta, point), z, create_graph=False)[1]

    def products(self, theta: Tensor, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient in z, `H q` and `B^T q`, by one backward pass through the graph of the gradient."""
        theta = _leaf(theta)
        slope, found, cross = self._pull(theta, z, q, [theta])
        return slope, found, cross[0]

    def curvature(self, theta: Tensor, z: Tensor, q: Tensor) -> Tensor:
        """Return `H q`."""
        # Theta stays a constant: the graph towards it would be recorded for nothing.
        return self._pull(theta, z, q, [])[1]

    def _pull(self, theta: Tensor, z: Tensor, q: Tensor, wanted: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        with torch.enable_grad():
            z = _leaf(z)
            slope = value_and_gradient(lambda point: self._value(theta, point), z, create_graph=True)[1]
        # One pass gives H q and B^T q, and frees the graph, which belongs to this batch only.
        found, *cross = pullback([slope], [z, *wanted], [q], last=True)
        if any(part is None for part in cross):
            self.checks.constant()
        filled = [torch.zeros_like(theta) if part is None else part for part in cross]
        # Without a part in z, the gradient does not depend on z, and H is zero.
        return slope.detach(), torch.zeros_like(z) if found is None else found, filled

    def _value(self, theta: Tensor, z: Tensor) -> Tensor:
        value = self.function(self.theta_layout.unravel(theta), self.z_layout.unravel(z), self.batch)
        if not isinstance(value, Tensor) or value.shape != ():
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise StructureError(
                f"`{self.name}` must return a scalar tensor, but returned {found}. Did you mean .mean()?"
            )
        if not value.requires_grad:
            raise StructureError(
                f"`{self.name}` must depend on theta or z, but its value carries no graph. "
                "Look for .detach(), .item(), torch.no_grad() or NumPy inside it."
            )
        return value


@dataclass(frozen=True)
class Oracle:
    """The pair of objectives. Each call of `upper()` or `lower()` takes the next batch."""

    functions: tuple[Any, Any]
    streams: tuple[Stream, Stream]
    theta_layout: Layout
    z_layout: Layout
    checks: Checks

    def upper(self) -> Sample:
        """Return the upper objective on the next upper batch."""
        return self.upper_on(self.streams[0].next())

    def lower(self) -> Sample:
        """Return the lower objective on the next lower batch."""
        return self.lower_on(self.streams[1].next())

    def upper_on(self, batch: Any) -> Sample:
        """Return the upper objective on a given batch."""
        return Sample(self.functions[0], batch, self.theta_layout, self.z_layout, "upper", self.checks)

    def lower_on(self, batch: Any) -> Sample:
        """Return the lower objective on a given batch."""
        return Sample(self.functions[1], batch, self.theta_layout, self.z_layout, "lower", self.checks)

    def directions(self, theta: Tensor, z: Tensor, q: Tensor) -> Directions:
        """Return the directions of all variables at one point, from one batch of each objective."""
        slope, curved, cross = self.lower().products(theta, z, q)
        direct, v = self.upper().gradients(theta, z)
        # dz/dtheta = -H^-1 B, so with H q = v the implicit part is -B^T q.
        return Directions(direct - cross, slope, curved - v)

    def descend(self, theta: Tensor, z: Tensor, lower: Descent, times: int) -> Tensor:
        """Return z after a number of descent steps on the lower objective, each with a new batch."""
        for _ in range(times):
            z = lower.move("z", z, self.lower().slope(theta, z))
        return z


def layouts(theta: Tree, z: Tree) -> tuple[Layout, Layout]:
    """Return the layouts of theta and z in flat tensors."""
    return Layout.of(theta, batched=False, name="theta"), Layout.of(z, batched=False, name="z0")


def _leaf(point: Tensor) -> Tensor:
    return point.detach().requires_grad_()

"""The sum of the norms of groups of coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._autodiff import plain, settled
from blo._layout import Layout
from blo._multipliers import clear, negligible, unresolved
from blo._term import Counts, Tangent, can_validate, failing
from blo._types import Tree
from blo.errors import StructureError
from blo.penalties._base import Penalty, require_weight


@dataclass(frozen=True, eq=False)
class GroupLasso(Penalty):
    """`sum_g weight_g |z_g|_2` over groups g of coordinates, which zeroes groups as a whole (Yuan and Lin, 2006).

    Unlike `L1` it is curved on its support, by `weight_g / |z_g|` across the direction of `z_g`.

    Attributes:
        weight: at least 0: a number, a tensor of shape `(groups,)` with one value per group, or `(*lanes, groups)`.
            Groups of weight 0 are not penalised.
        groups: the group of each coordinate, numbered from 0: an integer tensor that broadcasts to z, or a tree like
            z. Coordinates with -1 are not penalised.
        slack: a group with `|z_g| > slack` is on the support. A smaller one is on it unless
            the weight exceeds the norm of the gradient by at least `|z_g|`. Absolute, in z's unit.
        validate: check the values of tensors, which is a host synchronisation on an accelerator.

    Raises:
        ValueError: if a weight is negative or NaN; when the problem is solved, if `slack` is negative.
        StructureError: when the problem is solved, if `groups` or `weight` does not fit z, the number of a group
            exceeds the number of weights or the size of z, or there is one weight for each problem instead of one for
            each group.
    """

    weight: Tensor | float
    groups: Tree
    slack: float = 1e-7
    validate: bool = True

    def __post_init__(self) -> None:
        require_weight(self.weight, "GroupLasso.weight", self.validate)

    def fit(self, layout: Layout) -> GroupLasso:
        groups = layout.ravel_parameter(self.groups, "GroupLasso.groups")
        if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.device != layout.device:
            found = type(groups).__name__ if not isinstance(groups, Tensor) else f"{groups.dtype} on {groups.device}"
            raise StructureError(
                f"`GroupLasso.groups` must be an integer tensor on {layout.device}, one entry per coordinate, but is "
                f"{found}. Use torch.arange or a tree of such tensors."
            )
        axes = len(layout.lanes) + 1
        groups = groups.long().reshape((1,) * (axes - groups.ndim) + groups.shape)
        weight = self.weight
        if isinstance(weight, Tensor):
            if weight.device != layout.device:
                raise StructureError(
                    f"`GroupLasso.weight` must be on {layout.device} like `z0`, but is on {weight.device}. Use `.to`."
                )
            if weight.ndim > axes or tuple(weight.shape[:-1]) not in {(), layout.lanes}:
                raise StructureError(
                    f"`GroupLasso.weight` must have shape () or (groups,), or {layout.lanes} before the number of "
                    f"groups, but has {tuple(weight.shape)}."
                )
            weight = settled(weight.to(layout.dtype)).reshape((1,) * (axes - weight.ndim) + weight.shape)
        if self.validate and can_validate():
            _check_numbers(groups, weight, layout.size)
            number = int(plain(groups).max()) + 1
            given = self.weight
            if isinstance(given, Tensor) and given.ndim == 1 and given.shape == layout.lanes and len(given) != number:
                raise StructureError(
                    f"`GroupLasso.weight` of shape {tuple(given.shape)} has one entry for each problem, but it is "
                    f"read as one entry for each of the {number} groups. For one weight per problem, give it the shape "
                    f"{(*layout.lanes, 1)}; otherwise leave out weights of groups without coordinates."
                )
        return replace(self, weight=weight, groups=groups, validate=False)

    def value(self, z: Tensor) -> Tensor:
        sums, _ = self._sums(z.square())
        norms = _root(sums)[..., :-1]
        if isinstance(self.weight, Tensor) and self.weight.shape[-1] > 1:
            weight = self.weight[..., : norms.shape[-1]]
            return torch.sum(weight * norms[..., : weight.shape[-1]], -1)
        return torch.sum(self.weight * norms, -1)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        norm, weight = self._norm(z), self._weight(z)
        positive = norm > 0
        # Block soft thresholding: max(0, 1 - step weight / |z_g|) z_g.
        share = (1 - step * weight / torch.where(positive, norm, 1.0)).relu()
        # A weight holds a group near zero at zero, so its derivative is zero there, and not that of a norm of one.
        return z * torch.where(positive | (weight == 0), share, 0.0)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        norm, weight = self._norm(z), self._weight(z)
        # A group at zero is optimal if |gradient_g| <= weight_g; the difference is the multiplier that holds it there.
        multiplier = weight - self._norm(gradient)
        # At zero the norm has no gradient, so a group is not `off` there, even if its multiplier is negative.
        off = clear(norm, multiplier, self.slack) & (norm > 0)
        support = off | (weight == 0)

        def direction(at: Tensor) -> Tensor:
            return torch.where(off, at / torch.where(off, self._norm(at), 1.0), 0.0)

        # K is the Hessian of the penalty on its support: weight / |z_g| (I - u u') in each group, with u = z_g / |z_g|.
        def bend(v: Tensor) -> Tensor:
            u = direction(z)
            across = v - u * self._within(u * v)
            return torch.where(off, weight / torch.where(off, norm, 1.0), 0.0) * across

        def force(term: GroupLasso, at: Tensor) -> Tensor:
            return term._weight(at) * direction(at)

        def count() -> Counts:
            # A group is one constraint, which is counted at its first coordinate.
            tangential = gradient * support + force(self, z)
            undecided = ~support & (negligible(multiplier, gradient, tangential) | (multiplier < 0))
            # Without a weight, nothing holds a group at zero, however near it is.
            undecided = undecided | (unresolved(norm, multiplier, self.slack, z) & (weight > 0))
            order = torch.arange(z.shape[-1], device=z.device).expand(z.shape)
            total, index = self._sums(torch.ones_like(z))
            first = torch.full_like(total, z.shape[-1], dtype=torch.long).scatter_reduce(-1, index, order, "amin")
            free = support.sum(-1)
            once = undecided & (first.gather(-1, index) == order)
            return Counts(free, z.shape[-1] - free, once.sum(-1))

        return Tangent(lambda v: v * support, 0.0, count, bend=bend, force=force)

    def _sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over each group, and the index of the sum to which each coordinate belongs.

        Shapes `(*lanes, n + 1)` and `(*lanes, n)`; the last sum is over the coordinates without a group.
        """
        n = values.shape[-1]
        groups: Tensor = self.groups
        index = torch.where(groups < 0, n, groups).expand(values.shape)
        zeros = torch.zeros_like(torch.cat([values, values[..., :1]], -1))
        return zeros.scatter_add(-1, index, values), index

    def _within(self, values: Tensor) -> Tensor:
        """Return for each coordinate the sum over its group, shape `(*lanes, n)`."""
        sums, index = self._sums(values)
        return sums.gather(-1, index)

    def _norm(self, z: Tensor) -> Tensor:
        """Return for each coordinate the norm of its group, without overflow and with the derivative zero at zero."""
        # `size |z_g / size|` does not depend on `size`, which may thus be a constant in the derivative.
        size = z.detach().abs().amax(-1, keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        return size * _root(self._within((z / size).square()))

    def _weight(self, like: Tensor) -> Tensor:
        """Return for each coordinate the weight of its group, or zero if it has none."""
        groups: Tensor = self.groups
        if isinstance(self.weight, Tensor) and self.weight.shape[-1] > 1:
            index = groups.clamp(min=0).expand(like.shape)
            found = self.weight.expand(*like.shape[:-1], self.weight.shape[-1]).gather(-1, index)
        else:
            found = self.weight * torch.ones_like(like)
        return torch.where(groups < 0, 0.0, found)


def _root(squares: Tensor) -> Tensor:
    # The derivative of the root is infinite at 0: take a constant there. 0 * squares keeps a NaN visible.
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0 * squares)


def _check_numbers(groups: Tensor, weight: Tensor | float, size: int) -> None:
    most = size
    if isinstance(weight, Tensor) and weight.shape[-1] > 1:
        most = min(size, weight.shape[-1])
    wrong = failing((groups >= -1) & (groups < most))
    if bool(wrong.any()):
        raise StructureError(
            f"`GroupLasso.groups` must be numbers from 0 to {most - 1}, or -1 for no penalty: z has {size} coordinates "
            f"and the weights are for {most} groups. {int(wrong.sum())} of {wrong.numel()} are not. "
            "Renumber them, for example with torch.unique(groups, return_inverse=True)."
        )

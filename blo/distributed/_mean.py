"""The mean over all processes of an objective that each evaluates on its own data."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import transforms_active
from blo._settings import require_positive
from blo._types import Tree
from blo.distributed._agreement import FEW, Row, checksum, meet, next_number, structure
from blo.distributed._linear import Copy, SumOverRanks
from blo.distributed._ranks import Ranks
from blo.errors import RankError, StructureError


def mean(objective: Callable[..., Any], weight: float = 1.0, group: Any = None) -> Callable[..., Any]:
    """Return the mean over all ranks of an objective that each rank evaluates on its share of the data.

    The mean is a function of theta and z like any other. Use it in lower problems and as the upper objective, with
    every solver, strategy and transform; its derivatives of any order are those of the objective on all the data.
    Theta and z must be equal on all ranks. Solutions and hypergradients are then equal too, bit for bit, and need no
    all-reduce. All ranks must make the same calls in the same order.

    Without a process group, or in a group of one, the mean is the objective itself.

    Args:
        objective: `objective(theta, z)` on this rank's share of the data: a mean over it if the result is to be the
            mean over all data. Returns a tensor of the same shape on all ranks, `()` or `(batch,)`. Further arguments
            of the mean, such as a minibatch, are passed to it. Tensors that it captures belong to this rank and are
            constants.
        weight: the weight of this rank relative to the others: the number of its samples if shares differ in size.
            Positive.
        group: a process group of `torch.distributed`; by default that of all processes. It is looked up at each
            evaluation, so `init_process_group` may be called after `mean`.

    Raises:
        StructureError: if `objective` is not a function. When the mean is evaluated: if the ranks differ in what they
            evaluate or in theta or z; if there are several processes, but no process group.
        RankError: when the mean is evaluated, if another rank's objective raised an exception, or another rank does not
            answer.
        ValueError: if `weight` is not positive and finite.
    """
    if not callable(objective):
        raise StructureError(
            f"`objective` must be a function of theta and z, but is of type {type(objective).__name__}. Wrap the "
            "objective before it is given to LowerProblem."
        )
    require_positive(weight, "weight", "Leave a rank without data out of the `group`.")
    if not math.isfinite(weight):
        raise ValueError(f"`weight` must be finite, but is {weight}.")
    return _Mean(objective, float(weight), group)


@final
class _Mean:
    """The mean. It stores what the ranks exchanged at its first evaluation."""

    def __init__(self, objective: Callable[..., Any], weight: float, group: Any) -> None:
        self._objective, self._weight, self._group = objective, weight, group
        self._name = getattr(objective, "__qualname__", type(objective).__name__)
        self._agreed: weakref.WeakKeyDictionary[Any, tuple[int, float]] = weakref.WeakKeyDictionary()

    def __call__(self, theta: Tree, z: Tree, *rest: Any) -> Any:
        """Return the mean over all ranks."""
        ranks = Ranks.of(self._group)
        if ranks is None:
            return self._objective(theta, z, *rest)
        (upper, above), (lower, below) = tree.flatten(theta, "theta"), tree.flatten(z, "z")
        number, share = self._agree(ranks, theta, z, upper + lower)
        device = _device(upper + lower)
        # Python's hash of integers, unlike that of strings, is the same in all processes; -1 separates theta from z.
        row = Row(0, number, 1, 0, hash((*_followed(upper), -1, *_followed(lower))), checksum(upper), checksum(lower))

        try:
            upper, ties = _own(ranks, upper)
            lower, copies = _own(ranks, lower, ties)
            ties = [*ties, *copies]
            value = self._objective(tree.unflatten(upper, above), tree.unflatten(lower, below), *rest)
            parts, spec = tree.flatten(value, "objective(theta, z)")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if ranks.host:  # otherwise ranks exchange no rows in an evaluation
                with contextlib.suppress(RankError):  # the user should see the first error
                    meet(ranks, row._replace(failed=1), (), device, lambda: reason)
            raise

        def add(values: Sequence[Tensor]) -> list[Tensor]:
            """Add the values of all ranks; a few values on the CPU are sent in the row."""
            size = sum(value.numel() for value in values)
            travel = size <= FEW and all(v.device.type == "cpu" and v.dtype.is_floating_point for v in values)
            numbers = [float(entry) for v in values for entry in v.reshape(-1).tolist()] if travel else []
            if ranks.host:
                found = meet(ranks, row._replace(structure=size), numbers, device, lambda: f"evaluates {self._name}")
            if not (ranks.host and travel):
                return ranks.sum(values)
            totals = iter([sum(column) for column in zip(*found, strict=True)])  # in the order of ranks
            return [v.new_tensor([next(totals) for _ in range(v.numel())]).reshape(v.shape) for v in values]

        return tree.unflatten(SumOverRanks.of(ranks, [share * part for part in parts], ties, add), spec)

    def _agree(self, ranks: Ranks, theta: Tree, z: Tree, leaves: Sequence[Tensor]) -> tuple[int, float]:
        """Return this objective's number and this rank's share of the weight, which are exchanged once."""
        if ranks.group not in self._agreed:
            number = next_number(ranks)
            found, text = structure(theta, z)
            sums = [checksum(tree.leaves(variable), wait=True) for variable in (theta, z)]
            row = Row(0, number, 0, found, 0, *sums)
            weights = meet(ranks, row, [self._weight], _device(leaves), lambda: f"begins {self._name} with {text}")
            self._agreed[ranks.group] = number, self._weight / sum(weight for (weight,) in weights)
        return self._agreed[ranks.group]


def _own(ranks: Ranks, leaves: Sequence[Tensor], beside: Sequence[Tensor] = ()) -> tuple[list[Tensor], list[Tensor]]:
    """Return the leaves for this rank's computation, and those of them that are copies for differentiation."""
    own, places = list(leaves), _followed(leaves)
    copies = Copy.of(ranks, [leaves[place] for place in places], beside)
    for place, copy in zip(places, copies, strict=True):
        own[place] = copy
    return own, copies


def _followed(leaves: Sequence[Tensor]) -> list[int]:
    """Return the places of leaves that may be differentiated: under a transform, which does not show it, all."""
    if transforms_active():
        return [i for i, leaf in enumerate(leaves) if leaf.is_floating_point() or leaf.is_complex()]
    return [i for i, leaf in enumerate(leaves) if leaf.requires_grad] if torch.is_grad_enabled() else []


def _device(leaves: Sequence[Tensor]) -> torch.device:
    """Return an accelerator that leaves are on, otherwise the CPU."""
    return next((leaf.device for leaf in leaves if leaf.device.type != "cpu"), torch.device("cpu"))

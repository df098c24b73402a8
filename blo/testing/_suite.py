"""Collects the properties that a suite has tested, and raises if one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blo import tree


@dataclass(frozen=True)
class Conformance:
    """The properties that hold.

    Attributes:
        subject: what was checked.
        properties: the name of each property, in the order in which it was checked.
    """

    subject: str
    properties: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.subject}: {len(self.properties)} properties hold", *self.properties])


@dataclass
class Suite:
    """Collects properties; the first one that fails raises.

    Args:
        subject: what is checked.
    """

    subject: str
    held: dict[str, None] = field(default_factory=dict)

    def require(self, name: str, condition: bool, found: str) -> None:
        """Require a condition.

        Raises:
            AssertionError: with the property and what was found.
        """
        if not condition:
            raise AssertionError(f"{self.subject} breaks the property {name!r}: {found}")
        self.held[name] = None

    def near(self, name: str, found: Tensor, truth: Tensor, tolerance: float, what: str) -> None:
        """Require two tensors to agree to a tolerance, absolute and relative to the larger.

        Raises:
            AssertionError: with the property and the numbers.
        """
        text = f"{what} has shape {tuple(found.shape)}, not {tuple(truth.shape)}"
        self.require(name, found.shape == truth.shape, text)
        if found.numel() == 0:
            return
        size = 1.0 + float(truth.abs().max())
        error = float((found - truth).abs().max()) / size
        text = f"{what} is off by {error:.2e} of its size, {tolerance:.0e} is allowed"
        self.require(name, error <= tolerance, text)

    def untouched(self, name: str, call: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Call a function and require that it leaves the tensors among its arguments as they were."""
        given = tree.tensors(tuple(arguments))
        before = [leaf.detach().clone() for leaf in given]
        result = call(*arguments)
        same = all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
        self.require(name, same, "an argument was modified in place")
        return result

    def report(self) -> Conformance:
        """Return the properties that hold."""
        return Conformance(self.subject, tuple(self.held))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Return normal numbers in double precision."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def sides(function: Callable[[float], Tensor], step: float) -> Tensor:
    """Return the derivative of a function of one number at 0, by a fourth-order central difference."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)

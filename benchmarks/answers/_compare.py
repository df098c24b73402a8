"""Comparison of blo's answers with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.registry import Cell, Goal, Outcome, Table

#: Largest allowed difference of an answer.
TOLERANCE = 1e-6

Number = float | Tensor | npt.NDArray[np.float64]


@dataclass
class Answers:
    """Collects answers: numbers, or arrays of any shape."""

    rows: list[list[Cell]] = field(default_factory=list)
    worst: float = 0.0

    def add(self, quantity: str, found: Number, truth: Number, scale: float | None = None) -> float:
        """Add an answer and return its difference from the truth, the largest of any entry.

        Args:
            quantity: its name.
            found: blo's answer.
            truth: the true value, of the same shape.
            scale: divisor of the difference; by default the largest entry of the truth, or 1 if that is 0.

        Raises:
            ValueError: if the shapes differ.
        """
        ours, theirs = _array(found), _array(truth)
        if ours.shape != theirs.shape:
            raise ValueError(f"{quantity}: blo's answer has shape {ours.shape}, the truth {theirs.shape}.")
        size = (float(np.abs(theirs).max()) or 1.0) if scale is None else scale
        difference = float(np.abs(ours - theirs).max()) / size
        self.rows.append([quantity, _show(ours), _show(theirs), difference])
        self.worst = float(np.maximum(self.worst, difference))  # which keeps NaN
        return difference

    def outcome(self, title: str, notes: Sequence[str] = (), more: Sequence[Table] = ()) -> Outcome:
        """Return the table, and the goal that the worst answer is within `TOLERANCE`."""
        table = Table(title, ("quantity", "blo", "truth", "difference"), self.rows, notes)
        return Outcome([table, *more], [Goal("largest difference", self.worst, TOLERANCE)])


def numpy(tensor: Tensor) -> npt.NDArray[np.float64]:
    """Return a tensor's values in double precision."""
    return np.asarray(tensor.detach().cpu().double())


def _array(value: Number) -> npt.NDArray[np.float64]:
    return numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value, dtype=np.float64)


def _show(value: npt.NDArray[np.float64]) -> str:
    if value.size == 1:
        return f"{value.item():.10g}"
    return f"norm {np.linalg.norm(value):.10g}"

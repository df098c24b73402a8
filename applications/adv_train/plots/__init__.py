"""Figures of runs: one file a figure, each written as PNG and SVG with its numbers as CSV beside them."""

from __future__ import annotations

from adv_train.plots.base import FIGURES, Drawing
from adv_train.plots.runs import Run, read_runs
from adv_train.plots.writing import folder_for, plot, write

__all__ = ["FIGURES", "Drawing", "Run", "folder_for", "plot", "read_runs", "write"]

"""Figures of runs: one module for each figure, which is written as PNG and SVG, and its numbers as CSV."""

from __future__ import annotations

from adv_train.plots.base import FIGURES, Drawing
from adv_train.plots.runs import Run, read_runs
from adv_train.plots.writing import folder_for, plot, write

__all__ = ["FIGURES", "Drawing", "Run", "folder_for", "plot", "read_runs", "write"]

"""One page for a few runs: what was measured, how training went, and what the attacks look like."""

from __future__ import annotations

from adv_train.report.page import render, write_report
from adv_train.report.sections import NextStep
from adv_train.report.summary import RunSummary, budget, class_rows, results_table
from adv_train.tables import FORMATS, Figure, write_table

__all__ = [
    "FORMATS",
    "Figure",
    "NextStep",
    "RunSummary",
    "budget",
    "class_rows",
    "render",
    "results_table",
    "write_report",
    "write_table",
]

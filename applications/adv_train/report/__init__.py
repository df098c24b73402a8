"""One page for a few runs: what was measured, how training went, and what the attacks look like."""

from __future__ import annotations

from adv_train.report.page import render, write_report
from adv_train.report.sections import NextStep, Section, Table
from adv_train.report.summary import RunSummary, accuracy_title, budget, class_rows, number, percent, results_table
from adv_train.tables import FORMATS, Figure, write_table

__all__ = [
    "FORMATS",
    "Figure",
    "NextStep",
    "RunSummary",
    "Section",
    "Table",
    "accuracy_title",
    "budget",
    "class_rows",
    "number",
    "percent",
    "render",
    "results_table",
    "write_report",
    "write_table",
]

"""The HTML report of one or several runs: accuracies, training curves, and images of the attacks."""

from __future__ import annotations

from adv_train.report.main_figure import Accuracy, Point, Scatter
from adv_train.report.page import render, write_report
from adv_train.report.sections import NextStep, Section, Table
from adv_train.report.summary import (
    Picture,
    RunSummary,
    accuracy_title,
    budget,
    class_rows,
    number,
    percent,
    results_table,
)
from adv_train.report.top import command, once_more
from adv_train.tables import FORMATS, Figure, write_table

__all__ = [
    "FORMATS",
    "Accuracy",
    "Figure",
    "NextStep",
    "Picture",
    "Point",
    "RunSummary",
    "Scatter",
    "Section",
    "Table",
    "accuracy_title",
    "budget",
    "class_rows",
    "command",
    "number",
    "once_more",
    "percent",
    "render",
    "results_table",
    "write_report",
    "write_table",
]

"""One page for a few runs: what was measured, how training went, and what the attacks look like."""

from __future__ import annotations

from adv_train.report.page import render, write_report
from adv_train.report.sections import NextStep
from adv_train.report.summary import RunSummary, markdown_table

__all__ = ["NextStep", "RunSummary", "markdown_table", "render", "write_report"]

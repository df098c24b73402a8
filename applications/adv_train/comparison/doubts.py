"""The failures and alarms of a comparison, run by run."""

from __future__ import annotations

from collections.abc import Sequence

from adv_train.comparison.results import Result
from adv_train.report import Section


def doubts(found: Sequence[Result]) -> list[tuple[str, str]]:
    """List the reasons of failed runs and the alarms of finished runs, each with the name of the run.

    Args:
        found: The results of the methods.
    """
    failed = [(name, reason) for result in found for name, reason in result.failed.items()]
    return failed + [(name, text) for result in found for name, texts in result.alarms.items() for text in texts]


def told_of(section: Section) -> list[str]:
    """Return the lines to print below a table: its notes, then its alarms."""
    return [*section.notes, *(f"{name}: {text}" for name, text in section.alarms)]

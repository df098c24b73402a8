"""What makes the figures of a comparison doubtful, run by run."""

from __future__ import annotations

from collections.abc import Sequence

from adv_train.comparison.results import Result
from adv_train.report import Section


def doubts(found: Sequence[Result]) -> list[tuple[str, str]]:
    """List runs that failed and the alarms of those that did not, each with the name of the run.

    Args:
        found: The methods.
    """
    failed = [(name, reason) for result in found for name, reason in result.failed.items()]
    return failed + [(name, text) for result in found for name, texts in result.alarms.items() for text in texts]


def told_of(section: Section) -> list[str]:
    """Return what has to be said of a table outside of a page: its notes, and then its alarms."""
    return [*section.notes, *(f"{name}: {text}" for name, text in section.alarms)]

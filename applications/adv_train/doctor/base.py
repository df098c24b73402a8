"""The interface of a check: a function from a patient to a finding, registered under a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from adv_train.registry import Registry

Verdict = Literal["well", "doubtful", "ill", "not checked"]
ILLNESSES: Final[tuple[Verdict, ...]] = ("doubtful", "ill")
"""Verdicts that the command exits with 1 for: a figure needs care, or is wrong."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        verdict: ``"well"``; ``"doubtful"``, when a figure may mislead; ``"ill"``, when it does; ``"not checked"``.
        seen: What was measured, in numbers; for ``"not checked"``, why.
        remedy: What to do; empty where nothing is wrong.
        figures: The same numbers in plain values.
    """

    verdict: Verdict
    seen: str
    remedy: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_illness(self) -> bool:
        """Whether something is to be put right."""
        return self.verdict in ILLNESSES


class NotCheckedError(Exception):
    """Raised by a check, or by what it asks of the patient, to say why it does not apply."""


def well(seen: str, **figures: Any) -> Finding:
    """Give the finding that nothing is wrong."""
    return Finding("well", seen, figures=figures)


def doubtful(seen: str, remedy: str, **figures: Any) -> Finding:
    """Give the finding that a figure may mislead."""
    return Finding("doubtful", seen, remedy, figures)


def ill(seen: str, remedy: str, **figures: Any) -> Finding:
    """Give the finding that a figure is wrong."""
    return Finding("ill", seen, remedy, figures)


CHECKS: Registry[Finding] = Registry("check", "adv_train.doctor.checks")

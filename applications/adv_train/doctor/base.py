"""The interface of a check: a function from a patient to a finding, registered under a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from adv_train.registry import Registry

Verdict = Literal["well", "doubtful", "ill", "not checked"]
ILLNESSES: Final[tuple[Verdict, ...]] = ("doubtful", "ill")
"""Verdicts for which the command exits with 1: a figure may mislead, or is wrong."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        verdict: ``"well"`` if the check passed; ``"doubtful"`` if a figure may mislead; ``"ill"`` if the check failed:
            a figure is wrong; ``"not checked"`` if the check does not apply.
        seen: The measurement, in numbers; for ``"not checked"``, the reason.
        remedy: What to do; empty if nothing is wrong.
        figures: The measured numbers in plain values.
    """

    verdict: Verdict
    seen: str
    remedy: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_illness(self) -> bool:
        """Whether the user must act: the verdict is ``"doubtful"`` or ``"ill"``."""
        return self.verdict in ILLNESSES


class NotCheckedError(Exception):
    """Raised by a check, or by a method of the patient that it calls, with the reason why the check does not apply."""


def well(seen: str, **figures: Any) -> Finding:
    """Return the finding that nothing is wrong."""
    return Finding("well", seen, figures=figures)


def doubtful(seen: str, remedy: str, **figures: Any) -> Finding:
    """Return the finding that a figure may mislead."""
    return Finding("doubtful", seen, remedy, figures)


def ill(seen: str, remedy: str, **figures: Any) -> Finding:
    """Return the finding that a figure is wrong."""
    return Finding("ill", seen, remedy, figures)


CHECKS: Registry[Finding] = Registry("check", "adv_train.doctor.checks")

"""The findings of the doctor, one per check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adv_train.doctor.base import Finding
from adv_train.files import replace_file
from adv_train.tables import write_table

DOCTOR_FILE: Final = "doctor.json"


@dataclass(frozen=True)
class Diagnosis:
    """Findings by the name of the check.

    Attributes:
        findings: The findings, in the order of the checks.
        about: Norm, eps, number of images, seed and checkpoint, in plain values.
    """

    findings: Mapping[str, Finding]
    about: Mapping[str, Any]

    @property
    def healthy(self) -> bool:
        """Whether no verdict is ``"doubtful"`` or ``"ill"``; ``"not checked"`` is neither."""
        return not self.illnesses

    @property
    def illnesses(self) -> dict[str, Finding]:
        """The findings whose verdict is ``"doubtful"`` or ``"ill"``."""
        return {name: finding for name, finding in self.findings.items() if finding.is_illness}

    def table(self, form: str = "markdown") -> str:
        """Return the findings as a table with one line per check, illnesses first."""
        order = sorted(self.findings, key=lambda name: not self.findings[name].is_illness)
        rows = [(name, self.findings[name]) for name in order]
        return write_table(
            ("check", "verdict", "what was seen", "remedy"),
            [[name, found.verdict, found.seen, found.remedy or "–"] for name, found in rows],
            form,
        )

    def summary(self) -> dict[str, Any]:
        """Return everything in plain values."""
        findings = {
            name: {"verdict": found.verdict, "seen": found.seen, "remedy": found.remedy, "figures": dict(found.figures)}
            for name, found in self.findings.items()
        }
        return {"healthy": self.healthy, **self.about, "checks": findings}

    def write(self, folder: Path) -> Path:
        """Write ``doctor.json`` into an existing folder, and return its path.

        Raises:
            UserError: If it cannot be written.
        """
        path = folder / DOCTOR_FILE
        replace_file(path, (json.dumps(self.summary(), indent=2) + "\n").encode())
        return path

    def __str__(self) -> str:
        return self.table()

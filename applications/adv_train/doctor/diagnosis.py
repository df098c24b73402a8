"""What the doctor found, check by check."""

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
        findings: In the order in which they were made.
        about: What was examined, in plain values.
    """

    findings: Mapping[str, Finding]
    about: Mapping[str, Any]

    @property
    def healthy(self) -> bool:
        """Whether no check found an illness; one that did not apply finds none."""
        return not self.illnesses

    @property
    def illnesses(self) -> dict[str, Finding]:
        """The findings that are to be put right."""
        return {name: finding for name, finding in self.findings.items() if finding.is_illness}

    def table(self, form: str = "markdown") -> str:
        """Lay the findings out, a line each, illnesses first."""
        order = sorted(self.findings, key=lambda name: not self.findings[name].is_illness)
        rows = [(name, self.findings[name]) for name in order]
        return write_table(
            ("check", "verdict", "what was seen", "remedy"),
            [[name, found.verdict, found.seen, found.remedy or "–"] for name, found in rows],
            form,
        )

    def summary(self) -> dict[str, Any]:
        """Give everything in plain values."""
        findings = {
            name: {"verdict": found.verdict, "seen": found.seen, "remedy": found.remedy, "figures": dict(found.figures)}
            for name, found in self.findings.items()
        }
        return {"healthy": self.healthy, **self.about, "checks": findings}

    def write(self, folder: Path) -> Path:
        """Write ``doctor.json`` into an existing folder, and give its path.

        Raises:
            UserError: When it cannot be written.
        """
        path = folder / DOCTOR_FILE
        replace_file(path, (json.dumps(self.summary(), indent=2) + "\n").encode())
        return path

    def __str__(self) -> str:
        return self.table()

"""A stage: rows of a record, written one by one, so that short calls go on where the last one stopped."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from benchmarks import record
from benchmarks.registry import Setting, stderr

Row: TypeAlias = dict[str, Any]


@dataclass
class Clock:
    """The time that one call has.

    Attributes:
        seconds: from its making on.
    """

    seconds: float
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds left; negative when the time is over."""
        return self.begun + self.seconds - time.monotonic()


class Stage:
    """The record of one stage.

    Args:
        path: The record. A row in it that succeeded is not made again.
        device: Recorded with the versions.
        quick: Sizes of a test; its rows never count as done for another size.
    """

    def __init__(self, path: Path, device: torch.device, *, quick: bool) -> None:
        self.path = path
        now = record.environment(Setting(device=device, quick=quick))
        self.environment = {"machine": now["machine"], "versions": now["versions"], "quick": quick}
        self.rows: dict[str, Row] = {}
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            if old["quick"] == quick:
                self.rows = old["rows"]

    def is_done(self, name: str) -> bool:
        """Whether the record holds the row, made without an error."""
        return name in self.rows and "failure" not in self.rows[name]

    def do(self, name: str, clock: Clock, make: Callable[[], Row]) -> None:
        """Make a row and write the record, unless the row is done or the time is over."""
        if self.is_done(name) or clock.left <= 0:
            return
        try:
            row = make()
        except Exception as error:
            traceback.print_exc()
            row = {"failure": f"{type(error).__name__}: {error}"[:500]}
        self.keep(name, row)

    def keep(self, name: str, row: Row) -> None:
        """Put a row into the record and write it. Each row says which machine and versions it is from."""
        self.rows[name] = {**row, "on": self.environment["machine"]["gpu"] or self.environment["machine"]["cpu"],
                           "torch": self.environment["versions"]["torch"]}  # fmt: skip
        record.write({**self.environment, "rows": self.rows}, self.path)
        stderr(f"{self.path.stem}: {name}: {_shown(row)}")


def _shown(row: Row) -> str:
    parts = {key: value for key, value in row.items() if isinstance(value, (int, float, str, bool))}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in parts.items()
    )

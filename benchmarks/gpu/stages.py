"""A stage: rows of a record, written one by one, so that a short call continues where the last one stopped."""

from __future__ import annotations

import hashlib
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

#: A row that failed this often is skipped: otherwise it would use up the time of the rows after it in every call.
_TRIES = 3


class OutOfTime(Exception):
    """The time was over before the row was made. The row did not fail: the next call makes it."""


@dataclass
class Clock:
    """The time that one call has.

    Attributes:
        seconds: duration, counted from the construction.
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
        quick: Whether the sizes are those of a test; its rows do not count as done for full sizes.
        same_code: Whether a row counts as done only if `blo` and `adv_train` have not changed since.

    Attributes:
        rows: A dict from the names of rows to their contents: the measurements, the device, the version of torch and
            the commit.
        on: The name of the device of this call.
    """

    def __init__(self, path: Path, device: torch.device, *, quick: bool, same_code: bool = False) -> None:
        self.path = path
        now = record.environment(Setting(device=device, quick=quick))
        self.environment = {"machine": now["machine"], "versions": now["versions"], "quick": quick}
        self.on: str = now["machine"]["gpu"] or now["machine"]["cpu"]
        self._code, self._same_code = code(), same_code
        self.rows: dict[str, Row] = {}
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            if old["quick"] == quick:
                # Old rows hold no commit; they belong to that of the record.
                self.rows = {name: {"commit": old["versions"]["commit"], **row} for name, row in old["rows"].items()}

    def is_done(self, name: str, part: str | None = None) -> bool:
        """Whether the record holds the row without an error, and with the named part if there is one."""
        row = self.rows.get(name)
        if row is None or (self._same_code and row.get("code") != self._code):
            return False
        return row["tries"] >= _TRIES if "tries" in row else "failure" not in row and (part is None or part in row)

    def do(self, name: str, clock: Clock, make: Callable[[], Row]) -> None:
        """Make a row and write the record, unless the row is done or the time is over."""
        if self.is_done(name) or clock.left <= 0:
            return
        try:
            row = make()
        except OutOfTime:
            return
        except Exception as error:
            traceback.print_exc()
            row = {"failure": f"{type(error).__name__}: {error}"[:500]}
        self.keep(name, row)

    def keep(self, name: str, row: Row) -> None:
        """Put a row into the record, with device, torch version, commit and code digest, and write the record."""
        if "failure" in row:
            row = {**row, "tries": self.rows.get(name, {}).get("tries", 0) + 1}
        versions = self.environment["versions"]
        on = {"on": self.on, "torch": versions["torch"], "commit": versions["commit"]}
        self.rows[name] = {**row, **on, "code": self._code}
        record.write({**self.environment, "rows": self.rows}, self.path)
        stderr(f"{self.path.stem}: {name}: {_shown(row)}")


def code() -> str:
    """Return a digest of the sources of `blo` and `adv_train`."""
    digest = hashlib.sha256()
    for package in ("blo", "applications"):
        for file in sorted((record.ROOT / package).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _shown(row: Row) -> str:
    parts = {key: value for key, value in row.items() if isinstance(value, (int, float, str, bool))}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in parts.items()
    )

"""The progress of several runs: a bar on a terminal, and one line for each finished run elsewhere."""

from __future__ import annotations

import sys
from typing import Any, Final

from tqdm import tqdm

from adv_train.comparison import Cell

RETRIES: Final = 2
"""How often a cell is restarted if its process dies; it resumes from its `last.pt`."""


class Tally:
    """Counts the cells that have ended.

    Args:
        cells: Number of cells to run.
        progress: Show a bar on stderr; ``None`` shows it on a terminal, and elsewhere writes a line for each cell.
    """

    def __init__(self, cells: int, progress: bool | None) -> None:
        self.shown = sys.stderr.isatty() if progress is None else progress
        self._in_lines = progress is None and not self.shown
        self._bar: tqdm[Any] = tqdm(
            total=cells, desc="runs", unit="run", leave=False, file=sys.stderr, disable=not self.shown
        )
        self._cells, self._ended = cells, 0

    def add(self, cell: Cell, failure: str | None) -> None:
        """Count a cell that has ended; `failure` is the reason if it failed."""
        self._ended += 1
        self._bar.update()
        if self._in_lines:
            said = failure or "trained and evaluated"
            print(f"{self._ended} of {self._cells}, {cell.name}: {said}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Write a line that does not report the end of a cell, unless progress is turned off."""
        if self.shown or self._in_lines:
            tqdm.write(text, file=sys.stderr)

    def restart(self, cell: Cell, failure: str) -> None:
        """Write that a cell whose process has died starts again."""
        self.say(f"{cell.name}: {failure}; it resumes after its last finished epoch.")

    def close(self) -> None:
        """Remove the bar from the screen."""
        self._bar.close()

"""What a user sees on stderr while a model trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm


class TrainingProgress:
    """A bar over the steps of a run, or a line an epoch where stderr is not a terminal.

    Args:
        title: What is trained.
        epochs: Of the whole run.
        steps: Of one epoch.
        shown: ``True`` for the bar, ``False`` for nothing, ``None`` for what suits the place that stderr goes to.
    """

    def __init__(self, title: str, epochs: int, steps: int, shown: bool | None) -> None:
        self._title = title
        self._epochs = epochs
        self._steps = steps
        bar = sys.stderr.isatty() if shown is None else shown
        self._lines = shown is None and not bar
        self._bar = tqdm(total=epochs * steps, desc=title, unit="step", file=sys.stderr, disable=not bar)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        """Show a line, unless nothing is to be shown."""
        if self._lines or not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def resume(self, epochs: int) -> None:
        """Count the epochs of an earlier process as done, and leave them out of the speed."""
        self._bar.initial = self._bar.n = epochs * self._steps
        self._bar.refresh()

    def step(self) -> None:
        """Count one step."""
        self._bar.update()

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """Show the record of an epoch that is done."""
        self._bar.set_postfix_str(
            f"epoch {record['epoch']}/{self._epochs}, loss {record['loss']:.3f}, "
            f"SA {record['val_sa']:.1%}, RA {record['val_ra']:.1%}"
        )
        if self._lines:
            print(
                f"{self._title}: epoch {record['epoch']}/{self._epochs}  loss {record['loss']:.3f}  "
                f"validation SA {record['val_sa']:.1%}  RA {record['val_ra']:.1%}  {seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )

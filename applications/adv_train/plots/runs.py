"""The runs of a figure, and their names in its legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adv_train.config import RunConfig
from adv_train.errors import UserError
from adv_train.evaluation import overfitted_epoch
from adv_train.records import RunFolder, best_record


@dataclass(frozen=True, eq=False)
class Run:
    """A run, finished or not.

    Attributes:
        name: Its name in the legend.
        folder: Its run folder.
        config: Its configuration.
    """

    name: str
    folder: RunFolder
    config: RunConfig

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of its epochs.

        Raises:
            UserError: If no epoch is finished.
        """
        found = self.folder.metrics()
        if not found:
            raise UserError(f"`{self.folder.path}` has no finished epoch: `adv-train fit` resumes it.")
        return found

    @property
    def best_epoch(self) -> int:
        """The epoch in ``best.pt``."""
        return int(best_record(self.config.training.select, self.metrics)["epoch"])

    @property
    def overfitted_epochs(self) -> list[int]:
        """The epochs that overfitted to the attack of training: those rolled back, and the first that was not."""
        back = [int(line["epoch"]) for line in self.metrics if "rolled_back_to" in line]
        first = overfitted_epoch(self.metrics) if self.config.method.attacks else None
        return back if first is None else [*back, first]

    def about(self) -> dict[str, str | float | None]:
        """Return the columns that identify the run of a row."""
        config = self.config
        return {
            "run": str(self.folder.path),
            "name": self.name,
            "method": config.method_name,
            "norm": config.threat.norm,
            "train_eps": config.threat.eps,
            "seed": config.training.seed,
        }


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Read the configurations of runs and name each run.

    The names are the methods if all differ, otherwise the names of the folders if all differ, otherwise the paths.

    Raises:
        UserError: If `paths` is empty or contains a folder twice, or a folder holds no run.
    """
    if not paths:
        raise UserError("Give at least one RUN, a folder that `adv-train fit` or `adv-train compare` made.")
    places = [Path(path) for path in paths]
    for place in places:
        if [other.resolve() for other in places].count(place.resolve()) > 1:
            raise UserError(f"`{place}` is given twice.")
    configs = [RunFolder(place).config() for place in places]
    namings = [[config.method_name for config in configs], [place.resolve().name for place in places]]
    unique = next((names for names in namings if len(set(names)) == len(names)), [str(place) for place in places])
    return [Run(name, RunFolder(place), config) for name, place, config in zip(unique, places, configs, strict=True)]

"""Records of `adv-train compare`, and differences of any two of their methods."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adv_train.comparison.statistics import Difference, Spread
from adv_train.report import accuracy_title
from adv_train.values import format_fraction


@dataclass(frozen=True)
class Entry:
    """A method of a record.

    Attributes:
        name: Name of the method with its options.
        epochs: Number of training epochs.
        forwards: Forward passes for each batch.
        implicit_share: Norm of the implicit part of its gradient over that of the direct part; None without one.
        accuracies: Accuracies by checkpoint and measure, and then by seed.
        doubtful: Number of runs that failed or raised an alarm.
    """

    name: str
    epochs: int
    forwards: float
    implicit_share: float | None
    accuracies: Mapping[tuple[str, str], Mapping[int, float]]
    doubtful: int

    def spread(self, measure: str, checkpoint: str = "last") -> Spread:
        """Return mean and deviation of an accuracy."""
        return Spread.of(list(self.accuracies[checkpoint, measure].values()))

    def over(self, other: Entry, measure: str, checkpoint: str = "last") -> Difference:
        """Return the difference in accuracy from another method, paired by seed."""
        return Difference.of(self.accuracies[checkpoint, measure], other.accuracies[checkpoint, measure])


@dataclass(frozen=True)
class Compared:
    """A record of `adv-train compare`.

    Attributes:
        name: Name of its folder.
        record: The content of comparison.json.
        entries: The methods that have a finished run; the keys are their names.
    """

    name: str
    record: Mapping[str, Any]
    entries: Mapping[str, Entry]

    @property
    def judge(self) -> str:
        """The strongest attack of the record."""
        attacks = self.record["attacks"]
        return "autoattack" if "autoattack" in attacks else next(iter(attacks))

    @property
    def title(self) -> str:
        """One line with data, threat, model, cost, seeds, number of images and attacks."""
        record, first = self.record, self.record["methods"][0]["config"]
        cost = "the same epochs" if record["cost"] is None else f"equal cost of {record['cost']:g} F"
        seeds = max((len(entry.accuracies["last", "sa"]) for entry in self.entries.values()), default=0)
        data, eps = record["data"].split("/")[-1], format_fraction(record["threat"]["eps"])
        attacks = [
            f"PGD-{chosen['steps']}-{chosen['restarts']}" if name == "pgd" else accuracy_title(name).removeprefix("RA-")
            for name, chosen in record["attacks"].items()
        ]
        return (
            f"{data}, {record['threat']['norm']}, eps {eps}, "
            f"{first['model']['name']}, {cost}, {seeds} seed{'' if seeds == 1 else 's'}, "
            f"{record['images']} test images, {', '.join(attacks)}"
        )


def comparisons(results: Path = Path("results")) -> list[Path]:
    """Return the folders of all comparisons; those whose names differ in a number follow that number."""
    return sorted(results.glob("compare-*"), key=lambda folder: (len(folder.name), folder.name))


def compared(folder: Path) -> Compared:
    """Read a record.

    Args:
        folder: The folder of comparison.json.
    """
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    entries = [_entry(method) for method in record["methods"]]
    return Compared(folder.name, record, {entry.name: entry for entry in entries if entry.accuracies["last", "sa"]})


def _entry(method: Mapping[str, Any]) -> Entry:
    accuracies = {
        (each["checkpoint"], each["measure"]): {int(seed): value for seed, value in each["by_seed"].items()}
        for each in method["accuracies"]
    }
    # An alarm has the name of its run, or of the run and the checkpoint.
    doubtful = {name.partition(",")[0] for name in method["alarms"]} | set(method["failed"])
    cost = method["epochs"], method["forwards"]
    return Entry(method["name"], *cost, method["implicit_share"], accuracies, len(doubtful))

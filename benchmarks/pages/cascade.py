"""What the cascade and the short form of AutoAttack cost, and how their verdicts differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adv_train.tables import write_table

RECORD = Path("results/cascade-cpu.json")


def cascade(path: Path = RECORD) -> str:
    """Write the table of a record of `benchmarks.cascade`, and what each attack saves against the first.

    Args:
        path: The record.
    """
    entries = sorted(json.loads(path.read_text(encoding="utf-8"))["entries"], key=lambda each: -_robust(each))
    first, *others = entries[0]["attacks"]
    header = ["eps of training / evaluation", *(f"`{name}`" for name in (first, *others))]
    rows = [
        [f"{each['trained_at']:g} / {each['judged_at']:g}", *(_cell(each, name) for name in (first, *others))]
        for each in entries
    ]
    told = [_saved(entries, first, name) for name in others]
    return "\n\n".join([write_table(header, rows), " ".join(told)])


def _robust(entry: dict[str, Any]) -> float:
    robust: float = next(iter(entry["attacks"].values()))["robust"] / entry["images"]
    return robust


def _cell(entry: dict[str, Any], name: str) -> str:
    found = entry["attacks"][name]
    share, passes = found["robust"] / entry["images"], found["image_passes"] / 1e6
    return f"{100 * share:.2f} %, {found['cpu_seconds']:.2g} s, {passes:.3g} M passes"


def _saved(entries: list[dict[str, Any]], first: str, name: str) -> str:
    speeds, images = [], sum(each["images"] for each in entries)
    for each in entries:
        speeds.append(each["attacks"][first]["cpu_seconds"] / each["attacks"][name]["cpu_seconds"])
    robust, broken = (
        sum(each["attacks"][name][f"{kind}_only_here"] for each in entries) for kind in ("robust", "broken")
    )
    return (
        f"`{name}` has {min(speeds):.2f} to {max(speeds):.2f} times the speed of `{first}`. Of {images} images it "
        f"breaks {broken} that `{first}` does not break, and leaves {robust} that `{first}` breaks."
    )

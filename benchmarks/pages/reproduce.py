"""The published cells: command, published and measured figures, and path of the record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adv_train.attacks import ATTACKS
from adv_train.comparison.results import judges
from adv_train.comparison.statistics import Spread
from adv_train.report import accuracy_title
from adv_train.reproduction import Published, PublishedTable
from adv_train.tables import write_table
from benchmarks.pages.cells import accuracy


def reproduce(name: str, records: Sequence[Path]) -> str:
    """Write the cells of a table with the published figures and those of the records.

    Args:
        name: Name of the table.
        records: Paths of `table.json` files, of any scale.
    """
    table = PublishedTable.find(name)
    read = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in records]
    read = [(path, record) for path, record in read if record["table"] == name]
    published = [m for m in dict.fromkeys(m for row in table.cells.values() for m in row) if m != "seconds"]
    header = [f"`adv-train table {name}`", *(f"{_title(m)} published" for m in published)]
    for record in (record for _, record in read):
        header.append(f"seeds, {record['scale']}")
        header += [f"{_title(measure)} {checkpoint}, {record['scale']}" for measure, checkpoint in _measures(record)]
    rows: list[list[str]] = []
    for cell, row in table.cells.items():
        rows.append([f"`--only {cell}`", *(_published(row.get(m)) for m in published)])
        for _, record in read:
            found = _spreads(record, cell)
            rows[-1].append(str(max((spread.n for spread in found.values()), default=0) or "–"))
            rows[-1] += [accuracy(found.get(key, Spread(0, None, None))) for key in _measures(record)]
    told = [
        f"**{table.about}.** In percent; best: `best.pt`, last: `last.pt`.",
        write_table(header, rows),
        *table.notes,
    ]
    told += [
        f"Scale {record['scale']}: {_settings(record)}. Record `{p.as_posix()}`, {_where(record)}."
        for p, record in read
    ]
    return "\n\n".join(told)


def _title(measure: str) -> str:
    return "SA" if measure == "sa" else accuracy_title(measure)


def _published(figure: Published | None) -> str:
    if figure is None:
        return "–"
    return f"{figure.mean:.2f}{'?' if figure.doubtful else ''}" + ("" if figure.std is None else f" ± {figure.std:.2f}")


def _measures(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each accuracy and checkpoint that a record has a figure of."""
    return list(dict.fromkeys((e["measure"], e["checkpoint"]) for cell in record["cells"] for e in cell["measured"]))


def _spreads(record: Mapping[str, Any], name: str) -> dict[tuple[str, str], Spread]:
    entries = [entry for cell in record["cells"] if cell["name"] == name for entry in cell["measured"]]
    return {(e["measure"], e["checkpoint"]): Spread(e["n"], e["mean"], e["std"]) for e in entries}


def _settings(record: Mapping[str, Any]) -> str:
    """Say what was measured, in words; older records do not hold all of it."""
    told = list(dict.fromkeys(map(_cell_settings, record["cells"])))
    if "seeds" in record:
        count = len(record["seeds"])
        told.append(f"{count} seed{'s' * (count > 1)} planned")
    return "; ".join(told)


def _cell_settings(cell: Mapping[str, Any]) -> str:
    config = cell["config"]
    data, epochs = config["data"]["name"].split("/")[-1], f"{config['training']['epochs']} epochs"
    if "attacks" not in cell:
        return f"{data}, {epochs}; attacks and number of test images not recorded"
    # `Attack.chosen`, which wrote the options, leaves out those that are None.
    unset = {name: dict.fromkeys(ATTACKS.options(name)) for name in cell["attacks"]}
    attacks = judges([ATTACKS.create(name, **unset[name] | options) for name, options in cell["attacks"].items()])
    return f"{data}, {cell['training_images']} training images, {cell['images']} test images, {attacks}, {epochs}"


def _where(record: Mapping[str, Any]) -> str:
    versions = record["versions"]
    return f"torch {versions['torch']}, {versions['machine']}"

"""The published cells: command, published and measured figures, and path of the record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    found = [record for _, record in read]
    measures = [m for m in dict.fromkeys(m for row in table.cells.values() for m in row) if m != "seconds"]
    header = ["cell", *(f"{_title(m)} published" for m in measures)]
    header += [f"{_title(m)}, {record['scale']}" for record in found for m in measures]
    rows = [
        [
            f"`adv-train fit --preset {cell}`",
            *(_published(row.get(measure)) for measure in measures),
            *(_measured(record, cell, measure) for record in found for measure in measures),
        ]
        for cell, row in table.cells.items()
    ]
    told = [f"**{table.about}.** In percent; measured figures are for `last.pt`.", write_table(header, rows)]
    told += [f"Scale {record['scale']}: record `{path.as_posix()}`, {_where(record)}." for path, record in read]
    return "\n\n".join(told)


def _title(measure: str) -> str:
    return "SA" if measure == "sa" else accuracy_title(measure)


def _published(figure: Published | None) -> str:
    if figure is None:
        return "–"
    return f"{figure.mean:.2f}{'?' if figure.doubtful else ''}" + ("" if figure.std is None else f" ± {figure.std:.2f}")


def _measured(record: Mapping[str, Any], cell: str, measure: str) -> str:
    for each in record["cells"]:
        for entry in each["measured"]:
            if (each["name"], entry["measure"], entry["checkpoint"]) == (cell, measure, "last"):
                return accuracy(Spread(entry["n"], entry["mean"], entry["std"]))
    return "–"


def _where(record: Mapping[str, Any]) -> str:
    versions = record["versions"]
    return f"torch {versions['torch']}, {versions['machine']}"

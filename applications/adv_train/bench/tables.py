"""The figures of the benchmark as tables for people, and as a record for programs."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from adv_train.bench.run import Row
from adv_train.tables import Cell, Figure, write_table


def record(rows: Sequence[Row], device: torch.device, **others: Any) -> dict[str, Any]:
    """Return the rows with the name of the machine, versions and other plain values, for JSON."""
    cuda = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "machine": machine,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **others,
        "rows": [asdict(row) for row in rows],
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = ("method", "forwards a step", "ms a step", "images/s", "over standard", "over by hand", "eager peak MiB")
    accelerated = any(row.over_eager is not None for row in rows)
    return write_table(
        (*head, "accelerated over eager", "s to prepare") if accelerated else head,
        [
            [
                row.name,
                _figure(row.forwards, 2),
                _figure(row.milliseconds, 1),
                _figure(row.images_per_second, 1),
                _figure(row.over_standard, 2),
                _figure(row.over_by_hand, 3),
                _figure(row.peak_mib, 0),
                *([_figure(row.over_eager, 2), _figure(row.prepare_seconds, 1)] if accelerated else []),
            ]
            for row in rows
        ],
    )


def epochs(rows: Sequence[Row], published: Mapping[str, Mapping[str, float]]) -> str:
    """Return the seconds of an epoch as a Markdown table: the estimates from the rows, then those of other authors.

    Beside the seconds stands their ratio to those of Fast-AT in the same column, which depends less on the machine.

    Args:
        rows: The rows.
        published: For each column of published figures, seconds by the name of the row.
    """
    over = "over fast-at"
    head = ["method", "s/epoch", "with validation", over, *(title for name in published for title in (name, over))]
    measured = {row.name: row.epoch_seconds for row in rows}
    lines: list[list[Cell]] = []
    for row in rows:
        line: list[Cell] = [
            row.name,
            _figure(row.epoch_seconds, 2),
            _figure(_with_validation(row), 2),
            _over(measured, row.name),
        ]
        for column in published.values():
            line += [_figure(column.get(row.name), 1), _over(column, row.name)]
        lines.append(line)
    return write_table(head, lines)


def _with_validation(row: Row) -> float | None:
    if row.epoch_seconds is None or row.validation_seconds is None:
        return None
    return row.epoch_seconds + row.validation_seconds


def _over(column: Mapping[str, float | None], name: str) -> Figure:
    found, floor = column.get(name), column.get("fast-at")
    return _figure(None if found is None or floor is None else found / floor, 2)


def _figure(value: float | None, decimals: int) -> Figure:
    return Figure(value, "" if value is None else f"{value:.{decimals}f}")

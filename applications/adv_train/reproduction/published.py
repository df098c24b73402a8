"""Published figures of papers and benchmarks, cell by cell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any, Final

from adv_train.config.layers import Folder
from adv_train.errors import UserError, unknown
from adv_train.written import items

#: Published tables, by name: `about` describes the table, and `cells` holds the figures of each preset, by measure.
TABLES: Final = Folder("published")
_FIGURE: Final = re.compile(r"([\d.]+)(\?)?(?: ± ([\d.]+))?")


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        mean: The figure, in percent or in seconds.
        std: Its standard deviation; None if none is published.
        doubtful: Whether the figure is hard to read in its source.
    """

    mean: float
    std: float | None = None
    doubtful: bool = False

    @classmethod
    def read(cls, text: object) -> Published:
        """Parse a figure such as `45.49 ± 0.21`, `40.17? ± 0.59` or `23.1`.

        Raises:
            ValueError: If the text has another form.
        """
        found = _FIGURE.fullmatch(str(text))
        if found is None:
            raise ValueError(f"`{text}` is not a figure such as 45.49 ± 0.21")
        return cls(float(found[1]), float(found[3]) if found[3] else None, found[2] is not None)


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    Attributes:
        name: Name of the table, such as `table-1`.
        about: One line that describes the table.
        cells: The published figures of each preset: `sa`, accuracies by the name of the attack, and `seconds` an epoch.
        notes: Sentences on how the figures were measured, above all where this differs from our runs.
    """

    name: str
    about: str
    cells: Mapping[str, Mapping[str, Published]]
    notes: tuple[str, ...] = ()

    @classmethod
    def find(cls, name: str) -> PublishedTable:
        """Read one of `TABLES`.

        Raises:
            UserError: If there is no such table.
        """
        if name not in TABLES:
            raise unknown("table", name, TABLES)
        found: dict[str, Any] = TABLES[name]
        cells = {
            preset: {measure: Published.read(text) for measure, text in row.items()}
            for preset, row in found["cells"].items()
        }
        return cls(name, found["about"], cells, tuple(found.get("notes", ())))

    def only(self, wanted: str) -> PublishedTable:
        """Keep the cells whose names contain one of several patterns; the whole name of a cell keeps only this cell.

        Args:
            wanted: Patterns separated by commas, in which `*` stands for any text; empty keeps all cells.

        Raises:
            UserError: If a pattern matches no cell.
        """
        kept: set[str] = set()
        for part in items(wanted):
            found = {part} if part in self.cells else {name for name in self.cells if fnmatch(name, f"*{part}*")}
            if not found:
                raise UserError(f"--only {part} matches no cell of {self.name}; its cells: {', '.join(self.cells)}.")
            kept |= found
        return replace(self, cells={name: row for name, row in self.cells.items() if not kept or name in kept})

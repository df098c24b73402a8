"""The figures that papers and benchmarks have published, cell by cell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Final

from adv_train.config.layers import Folder
from adv_train.errors import UserError, unknown
from adv_train.written import items

#: By name: a line `about` the table, and what is published of its `cells`, each a preset, by measure.
TABLES: Final = Folder("published")
_FIGURE: Final = re.compile(r"([\d.]+)(\?)?(?: ± ([\d.]+))?")


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        mean: In percent, or in seconds.
        std: Standard deviation, where one is given.
        doubtful: Whether the source is hard to read.
    """

    mean: float
    std: float | None = None
    doubtful: bool = False

    @classmethod
    def read(cls, text: object) -> Published:
        """Read it as it is written: `45.49 ± 0.21`, `40.17? ± 0.59` or `23.1`.

        Raises:
            ValueError: When it is written in another way.
        """
        found = _FIGURE.fullmatch(str(text))
        if found is None:
            raise ValueError(f"`{text}` is not a figure such as 45.49 ± 0.21")
        return cls(float(found[1]), float(found[3]) if found[3] else None, found[2] is not None)


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    Attributes:
        name: Such as `table-1`.
        about: A line on it.
        cells: For each preset what is published: by `sa`, the name of an attack, and `seconds` an epoch.
    """

    name: str
    about: str
    cells: Mapping[str, Mapping[str, Published]]

    @classmethod
    def find(cls, name: str) -> PublishedTable:
        """Read one of `TABLES`.

        Raises:
            UserError: When there is no such table.
        """
        if name not in TABLES:
            raise unknown("table", name, TABLES)
        found: dict[str, Any] = TABLES[name]
        cells = {
            preset: {measure: Published.read(text) for measure, text in row.items()}
            for preset, row in found["cells"].items()
        }
        return cls(name, found["about"], cells)

    def only(self, wanted: str) -> PublishedTable:
        """Keep some cells.

        Args:
            wanted: Parts of their names with commas between, with `*` where any text may stand; all where it is empty.

        Raises:
            UserError: When one of the parts is in no name.
        """
        parts = items(wanted)
        for part in parts:
            if not any(_is_in(part, name) for name in self.cells):
                raise UserError(f"--only {part}: no cell of {self.name} is called so: {', '.join(self.cells)}.")
        kept = {name: row for name, row in self.cells.items() if not parts or any(_is_in(part, name) for part in parts)}
        return PublishedTable(self.name, self.about, kept)


def _is_in(part: str, name: str) -> bool:
    return fnmatch(name, f"*{part}*")

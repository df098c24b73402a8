"""Write a figure as PNG and SVG, and its numbers as CSV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adv_train.errors import UserError
from adv_train.files import make_folder, replace_file
from adv_train.plots.base import FIGURES, Drawing, Row
from adv_train.plots.runs import Run, read_runs
from adv_train.plots.style import STYLE
from adv_train.tables import Cell, Figure, write_table


def plot(
    name: str,
    runs: Sequence[Path | str] | Path | str,
    *,
    out: Path | str | None = None,
    progress: bool | None = False,
    **options: Any,
) -> list[Path]:
    """Draw a figure of runs.

    Args:
        name: `"landscape"`, `"strength"`, `"alignment"` or `"curves"`.
        runs: Run folders.
        out: Folder for the files, created if necessary; by default `RUN/plots`, and `plots` for several runs.
        progress: Whether to show a progress bar on stderr; None shows it on a terminal only.
        **options: Options of the figure, by the names of its flags: see `adv-train plot NAME --help`.

    Returns:
        The paths of `NAME.png`, `NAME.svg` and `NAME.csv`. Existing files are replaced.

    Raises:
        UserError: If the name, an option or a run is invalid, or a file cannot be written.
    """
    found = read_runs([runs] if isinstance(runs, (str, Path)) else runs)
    where = folder_for(found) if out is None else Path(out)
    return write(FIGURES.create(name, **options), found, where, progress=progress)


def folder_for(runs: Sequence[Run]) -> Path:
    """Return the default folder for figures of these runs."""
    return runs[0].folder.path / "plots" if len(runs) == 1 else Path("plots")


def write(drawing: Drawing[Any], runs: Sequence[Run], out: Path, *, progress: bool | None = False) -> list[Path]:
    """Compute the numbers, draw the figure and write the files; see `plot`."""
    from matplotlib import rc_context  # Not at the top: listing the figures does not need matplotlib.

    numbers = drawing.measure(runs, progress)
    name = FIGURES.name_of(drawing)
    content = {"csv": _csv(drawing.rows(numbers))}
    with rc_context(STYLE):
        figure = drawing.draw(numbers)
        # Without dates, so that the same numbers give identical files.
        for form, metadata in (("png", {}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=form, metadata=metadata)
            content[form] = buffer.getvalue()
    make_folder(out)
    if not out.is_dir():
        raise UserError(f"Cannot write figures into `{out}`: it is not a folder.")
    paths = [out / f"{name}.{form}" for form in ("png", "svg", "csv")]
    for path in paths:
        replace_file(path, content[path.suffix[1:]])
    return paths


def _csv(rows: Sequence[Row]) -> bytes:
    def cell(value: str | float | None) -> Cell:
        return value if isinstance(value, str) else Figure(value, "")

    table = write_table(list(rows[0]), [[cell(value) for value in row.values()] for row in rows], "csv")
    return f"{table}\n".encode()

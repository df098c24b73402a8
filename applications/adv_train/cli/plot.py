"""Draw figures of runs as PNG and SVG files, and write their numbers to a CSV file.

examples:
  adv-train plot landscape runs/fast-at runs/fast-bat --out figures
  adv-train plot strength runs/fast-at-* runs/fast-bat-* --out figures
  adv-train plot curves runs/a                       (writes to runs/a/plots)
  adv-train plot landscape --help                    (shows the flags of this figure)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adv_train.cli.command_line import Group, Progress, given, group_of
from adv_train.errors import UserError
from adv_train.plots import FIGURES, Drawing, folder_for, read_runs, write


@dataclass(frozen=True, kw_only=True)
class Plot(Progress):
    """The runs to draw, and the folder to write to.

    Attributes:
        runs: Run folders, as given to `adv-train fit --out`.
        out: Folder for the files; by default RUN/plots, and plots for several runs.
    """

    runs: tuple[Path, ...] = ()
    out: Path | None = None


def read(words: Sequence[str]) -> tuple[Plot, Drawing[Any]]:
    """Read the figure's name, the runs, and the flags of the command and of the figure."""
    if not words or words[0].startswith("-"):
        raise UserError(f"Name the figure to draw: {', '.join(FIGURES.names())} (see `adv-train plot --help`).")
    name, *rest = words
    kind: Any = FIGURES.find(name)
    own = group_of(Plot, positional="runs")
    options = {option.replace("_", "-"): leaf for option, leaf in FIGURES.options(name).items()}
    about, _, _ = (inspect.getdoc(kind) or "").partition("\nAttributes:")
    groups = [own, Group(name, "What is measured and drawn.", options)] if options else [own]
    text = f"{' '.join(about.split())}\n\n{kind.examples}"
    found = {
        flag.replace("-", "_"): value for flag, value in given(rest, groups, f"adv-train plot {name}", text).items()
    }
    common = {flag: found.pop(flag) for flag in ("runs", "out", "quiet", "progress") if flag in found}
    return Plot(**common), FIGURES.create(name, **found)


def run(words: Sequence[str]) -> int:
    """Draw the figure and print the paths of its files."""
    if words and words[0] in ("-h", "--help"):
        print(_help())
        return 0
    command, drawing = read(words)
    runs = read_runs(command.runs)
    for path in write(drawing, runs, command.out or folder_for(runs), progress=command.shown):
        print(f"written to {path}")
    return 0


def _help() -> str:
    description, _, examples = (__doc__ or "").partition("\n\n")
    width = max(map(len, FIGURES.names()))
    lines = [f"  {name.ljust(width)}  {FIGURES.describe(name)}" for name in FIGURES.names()]
    usage = "usage: adv-train plot FIGURE RUN...       (`adv-train plot FIGURE --help` explains a figure)"
    return "\n".join([usage, "", description, "", "figures:", *lines, "", examples.rstrip()])

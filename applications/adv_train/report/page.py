"""The report page: one self-contained HTML file without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adv_train.files import replace_file
from adv_train.report import sections, top
from adv_train.report.curves import charts, has_one_step, marks
from adv_train.report.drawing import COLOURS
from adv_train.report.main_figure import Scatter
from adv_train.report.pictures import gallery
from adv_train.report.sections import NextStep, Section
from adv_train.report.summary import RunSummary
from adv_train.series import DASHES

# With this policy the browser lets the page load nothing and run no script.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    path: Path,
    runs: Sequence[RunSummary],
    *,
    title: str,
    first: Sequence[Section] = (),
    figures: Sequence[Scatter] = (),
    again: Sequence[NextStep] = (),
    next_steps: Sequence[NextStep] = (),
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write the page; the file is replaced atomically. The other arguments are those of `render`.

    Raises:
        UserError: If the file cannot be written; an existing file is then unchanged.
    """
    content: dict[str, Any] = {"first": first, "figures": figures, "again": again, "next_steps": next_steps}
    replace_file(path, render(runs, title=title, **content, versions=versions).encode())


def render(
    runs: Sequence[RunSummary],
    *,
    title: str,
    first: Sequence[Section] = (),
    figures: Sequence[Scatter] = (),
    again: Sequence[NextStep] = (),
    next_steps: Sequence[NextStep] = (),
    versions: Mapping[str, str] | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        runs: The runs, in the order of the table.
        title: Heading of the page.
        first: Sections to show before those of the runs.
        figures: Main figures; by default one figure of the runs, if they can be compared.
        again: Commands that reproduce the runs and the page.
        next_steps: Commands to show at the end.
        versions: Software and machine that produced the results; by default those of this process.
    """
    # Every value is escaped, except the style and the drawings, which are marked as safe HTML.
    environment = Environment(
        loader=PackageLoader("adv_train.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = files("adv_train.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    drawn = charts(runs)
    lines = [(run.name, index % COLOURS, DASHES[index % len(DASHES)]) for index, run in enumerate(runs)]
    galleries = [
        gallery(run.name, run.examples, _span(run.evaluation), run.class_names)
        for run in runs
        if run.examples is not None
    ]
    return environment.get_template("page.html").render(
        title=title,
        policy=_POLICY,
        style=Markup(style),
        first=first,
        lead=sections.lead(runs),
        alarms=top.alarms(runs, first),
        mains=top.mains(runs, figures),
        tiles=top.tiles(runs),
        facts=top.facts(runs),
        results=sections.results(runs),
        classes=sections.classes(runs),
        records=sections.records(runs),
        published=sections.published(runs),
        charts=drawn,
        legend=lines if drawn and len(runs) > 1 else [],
        marks=marks(runs) if drawn else [],
        one_step=has_one_step(runs),
        landscapes=sections.landscapes(runs),
        galleries=galleries,
        configuration=sections.configuration(runs, sections.versions() if versions is None else versions),
        again=again,
        next_steps=next_steps,
    )


def _span(record: Mapping[str, Any]) -> float | None:
    """Return the largest change of a pixel that the attacks may make; None if the norm does not bound single pixels."""
    span: float | None = record["eps"] if record.get("norm", "linf") == "linf" else None
    return span

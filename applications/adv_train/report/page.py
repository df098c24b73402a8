"""The report page: one file with everything in it, nothing to fetch and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from adv_train.files import replace_file
from adv_train.report import sections
from adv_train.report.elements import node, to_html
from adv_train.report.sections import NextStep
from adv_train.report.summary import RunSummary

# The browser enforces what the tests check: no request leaves the page, and nothing in it runs.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    path: Path,
    runs: Sequence[RunSummary],
    *,
    title: str,
    next_steps: Sequence[NextStep] = (),
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write the page in one piece; the other arguments are those of `render`.

    Raises:
        UserError: When it cannot be written; what the file held before is unchanged.
    """
    replace_file(path, render(runs, title=title, next_steps=next_steps, versions=versions).encode())


def render(
    runs: Sequence[RunSummary],
    *,
    title: str,
    next_steps: Sequence[NextStep] = (),
    versions: Mapping[str, str] | None = None,
) -> str:
    """Give the page as HTML.

    Args:
        runs: In the order of the table.
        title: Heading of the page.
        next_steps: Shown at the end.
        versions: Software and machine behind the figures; by default those of this process.
    """
    parts = {
        "Results": sections.results(runs),
        "Published figures": sections.published(runs),
        "Training": sections.training(runs),
        "What the attack does": sections.examples(runs),
        "Configuration": sections.configuration(runs, sections.versions() if versions is None else versions),
        "What to run next": sections.next_steps(next_steps),
    }
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", title),
        node("style", files("adv_train.report").joinpath("style.css").read_text(encoding="utf-8")),
    )
    header = node("header", node("h1", title), *sections.lead(runs))
    shown = [node("section", node("h2", name), *content) for name, content in parts.items() if content]
    return to_html(node("html", head, node("body", node("main", header, *shown)), lang="en"))

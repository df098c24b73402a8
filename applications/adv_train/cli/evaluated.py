"""The lines that `adv-train eval` prints besides its table."""

from __future__ import annotations

import sys
from pathlib import Path

from adv_train.evaluation import Evaluation
from adv_train.report import RunSummary, budget, class_rows, percent, write_table

_SHOWN_CLASSES = 12


def radius(outcome: Evaluation) -> str:
    """Write the radius of the attacks."""
    return f"ε = {outcome.eps:.4g}"


def told(outcome: Evaluation, several: bool) -> list[str]:
    """Return a line for each warning of a record."""
    at = f" at {radius(outcome)}" if several else ""
    return [f"warning{at}: {warning}" for warning in outcome.warnings]


def about(outcome: Evaluation, folder: Path) -> str:
    """Describe what was evaluated, and name the file of the record."""
    averaged = f" (averaged weights, {outcome.about['averaged']})" if "averaged" in outcome.about else ""
    judged = f"{outcome.n} test images, {outcome.about['checkpoint']}{averaged}, {budget(outcome.summary())}"
    part = ""
    if outcome.of is not None and outcome.n < outcome.of:
        part = f"\nThe test set has {outcome.of} images; the intervals assume that the {outcome.n} are a random sample."
    return f"{judged}; written to {folder / 'eval.json'}{part}"


def rounding(outcome: Evaluation) -> str:
    """Report the robust accuracy after the adversarial images are rounded to 8 bits."""
    each = [
        f"{name} {percent(found['ra'])} ({found['stay']} of {found['broken']} successful attacks still succeed, "
        f"{found['more']} more succeed)"
        for name, found in outcome.after_rounding().items()
    ]
    return f"Robust after rounding to 8 bits at {radius(outcome)}: {', '.join(each) or 'no attack was run'}"


def print_classes(summary: RunSummary, heading: str) -> None:
    """Print the accuracies of each class; if there are many classes, print only those with the lowest accuracies."""
    titles, rows = class_rows(summary)
    if not rows:
        return
    classes = summary.evaluation["per_class"]
    # The order is by robust accuracy under the last attack, the strongest; without attacks, by clean accuracy.
    worst = sorted(range(len(rows)), key=lambda i: [*classes[i]["ra"].values(), classes[i]["sa"]][-2:][0] or 0.0)
    many = len(rows) > _SHOWN_CLASSES
    chosen = sorted(worst[:_SHOWN_CLASSES]) if many else range(len(rows))
    if heading:
        print(f"\n{heading}")
    print(f"\n{write_table(titles, [rows[i] for i in chosen])}")
    if many:
        print(f"These are the {_SHOWN_CLASSES} of {len(rows)} classes with the lowest accuracy.")
    print()


def say(text: str, form: str) -> None:
    """Print a line for the user: on stdout, or on stderr if stdout must hold nothing but a CSV or LaTeX table."""
    print(text, file=sys.stdout if form == "markdown" else sys.stderr)

"""The report besides its table: figures on top, marks, alarms, the landscape, and the commands that make it again."""

from __future__ import annotations

import base64
import io
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from adv_train.report import Accuracy, NextStep, Picture, Point, Scatter, Section, Table, once_more, render
from tests.applications.report_pages import EVALUATION, METRICS, Page, run, sections

JUDGED = EVALUATION | {
    "checkpoint": "best.pt",
    "epoch": 4,
    "data": "digits",
    "seed": 3,
    "intervals": {"sa": [0.953, 0.988], "ra": {"pgd": [0.637, 0.733], "autoattack": [0.608, 0.706]}},
    "torch": "2.99",
}
SETTINGS = {
    "method": {"name": "fast-bat"},
    "model": {"name": "small-cnn"},
    "training": {"epochs": 4, "seed": 7},
    "threat": {"norm": "linf", "eps": 0.2},
}


def drawing(html: str, start: str) -> str:
    found = re.search(rf'<svg[^>]*aria-label="{start}.*?</svg>', html, flags=re.DOTALL)
    assert found is not None, start
    return found[0]


def label(html: str, start: str) -> str:
    (found,) = [svg["aria-label"] for svg in Page(html).all("svg") if svg.get("aria-label", "").startswith(start)]
    return found


def uses(svg: str, colour: int) -> list[tuple[float, float]]:
    """Places of the marks of a colour, in the order of drawing."""
    marks = re.findall(r'<use[^>]*x="(\S+)" y="(\S+)"[^>]*style="[^"]*var\(--series-(\d)\)', svg)
    return [(float(x), float(y)) for x, y, index in marks if int(index) == colour]


def is_affine(values: Any, drawn: Any) -> bool:
    slope, offset = np.polyfit(values, drawn, 1)
    return np.allclose(slope * np.array(values) + offset, drawn, atol=1e-3)


# --- at a glance -----------------------------------------------------------------------------------------------------


def test_the_head_of_one_run_has_its_figures_and_what_was_judged() -> None:
    part = sections(render([run(evaluation=JUDGED, config=SETTINGS, best_epoch=4)], title="x"))["At a glance"]
    tiles = re.findall(r'class="what">(.*?)</span><span class="value">(.*?)</span><span class="interval">(.*?)<', part)
    assert tiles == [
        ("SA", "97.5 %", "[95.3, 98.8]"),
        ("RA-PGD", "68.6 %", "[63.7, 73.3]"),
        ("RA-AA", "65.8 %", "[60.8, 70.6]"),
    ]
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", part))
    assert facts == {
        "judged": "best.pt (epoch 4), 360 images, linf, ε = 0.2",
        "data set": "digits, test split",
        "attacks": "pgd 50 × 10 (seed 3)",
        "trained": "fast-bat, small-cnn, 4 epochs, linf, ε = 0.2, seed 7",
        "best epoch": "4 of 4, on the validation images",
        "evaluated with": "torch 2.99",
    }
    assert label(part, "Accuracies of fast-bat").endswith("RA-PGD 68.6 % [63.7, 73.3]; RA-AA 65.8 % [60.8, 70.6].")


def test_intervals_are_drawn_to_scale() -> None:
    svg = drawing(render([run(evaluation=JUDGED)], title="x"), "Accuracies of")
    bars = [
        tuple(map(float, bar))
        for bar in re.findall(r'd="M (\S+) \S+\s+L (\S+) \S+\s*" clip-path[^>]*stroke: var\(--series-0\)', svg)
    ]
    ends = [end for pair in ([0.953, 0.988], [0.637, 0.733], [0.608, 0.706]) for end in pair]
    assert len(bars) == 3 and is_affine(ends, [x for bar in bars for x in bar])


def scatter(**changes: Any) -> Scatter:
    def at(value: float) -> Accuracy:
        return Accuracy(value, (value - 0.01, value + 0.02), f"{100 * value:.1f} ± 1 %")

    points = [Point(f"m{i}", at(0.7 + 0.05 * i), at(y)) for i, y in enumerate([0.5, 0.42, 0.45])]
    return replace(Scatter("Title", points, "RA-PGD", "Bars: something."), **changes)


def test_methods_are_at_their_accuracies_with_their_bars() -> None:
    html = render([], title="x", figures=[scatter()])
    svg = drawing(html, "Title")
    places = [[place for place in uses(svg, index)][-1] for index in range(3)]
    assert is_affine([0.7, 0.75, 0.8], [x for x, _ in places]) and is_affine([0.5, 0.42, 0.45], [y for _, y in places])
    across = [
        re.findall(rf'd="M (\S+) \S+\s+L (\S+) \S+\s*" clip-path[^>]*stroke: var\(--series-{i}\)', svg)[0]
        for i in range(3)
    ]
    ends = [end for x in (0.7, 0.75, 0.8) for end in (x - 0.01, x + 0.02)]
    assert is_affine([*ends, 0.7, 0.75, 0.8], [*(float(x) for pair in across for x in pair), *(x for x, _ in places)])
    key = re.findall(r'class="dot"[^>]*>(\d)</span><span><strong>(.*?)</strong> (.*?)</span>', html)
    assert key[1] == ("2", "m1", "clean 75.0 ± 1 %, robust 42.0 ± 1 %") and "Bars: something." in html


def test_a_method_without_robustness_does_not_squeeze_the_others_together() -> None:
    points = scatter().points
    collapsed = Point("broken", Accuracy(0.99, (0.98, 1.0), "99 %"), Accuracy(0.0, (0.0, 0.01), "0 %"))
    without, beside = (
        drawing(render([], title="x", figures=[scatter(points=drawn)]), "Title")
        for drawn in (points, [*points, collapsed])
    )
    alone, together = ([uses(svg, index)[-1] for index in range(3)] for svg in (without, beside))
    assert np.allclose(alone, together, atol=8)  # The marker at the edge takes a little room.
    (x, y) = uses(beside, 3)[-1]
    assert x > max(x for x, _ in together) and y > max(y for _, y in together)  # At the edge; y points down.
    html = render([], title="x", figures=[scatter(points=[*points, collapsed])])
    assert "broken clean 99 %, robust 0 %" in label(html, "Title") and "Triangles: methods outside" in html
    assert "Triangles" not in render([], title="x", figures=[scatter()])


def test_runs_are_set_beside_each_other_only_where_they_compare() -> None:
    other = run("other", evaluation=JUDGED | {"sa": 0.9, "ra_aa": 0.7})
    html = render([run(evaluation=JUDGED), other], title="x")
    assert "other clean 90.0 % [95.3, 98.8], robust 70.0 %" in label(html, "Robust against clean accuracy")
    assert "RA-AA" in drawing(html, "Robust against clean") and 'class="tiles"' not in html
    without = run("without", evaluation=JUDGED | {"ra_aa": None})
    assert "(RA-PGD)" in drawing(render([run(evaluation=JUDGED), without], title="x"), "Robust against clean")
    for change in ({"eps": 0.1}, {"n": 10}, {"norm": "l2"}, {"ra_aa": None, "ra_pgd": None}):
        page = render([run(evaluation=JUDGED), run("b", evaluation=JUDGED | change)], title="x")
        assert "At a glance" not in sections(page)


# --- training --------------------------------------------------------------------------------------------------------


def test_best_and_judged_epochs_are_marked_on_the_curves() -> None:
    html = render([run(evaluation=JUDGED | {"epoch": 2}, best_epoch=4)], title="x")
    svg = drawing(html, "Robust accuracy on")
    (line,) = re.findall(r'd="([^"]*)"[^>]*style="fill: none; stroke: var\(--series-0\); stroke-width: 2', svg)
    curve = [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", line)]
    assert np.allclose(uses(svg, 0), [curve[3], curve[1]])
    assert "epoch in best.pt 4, evaluated epoch 2" in label(html, "Robust accuracy on")
    part = sections(html)["Training"]
    assert "epoch in best.pt</li>" in part and "evaluated epoch</li>" in part and "rolled back" not in part


def test_epochs_that_were_rolled_back_are_marked_and_told() -> None:
    rows = [*METRICS[:3], METRICS[3] | {"rolled_back_to": 2}]
    html = render([run(metrics=rows, evaluation=JUDGED | {"checkpoint": "last.pt"}, best_epoch=2)], title="x")
    told = label(html, "Robust accuracy on")
    # The weights after epoch 4 are those of epoch 2.
    assert "evaluated epoch 2" in told and "epoch that overfitted and was rolled back 4" in told
    assert "rolled back</li>" in sections(html)["Training"]
    assert "from epoch 4 to 2" in html.partition("<section>")[0]


def test_one_step_stands_beside_pgd() -> None:
    steps = [0.2, 0.7, 0.8, 0.9]
    rows = [row | {"val_fgsm": value} for row, value in zip(METRICS, steps, strict=True)]
    html = render([run(metrics=rows)], title="x")
    svg = drawing(html, "Robust accuracy on")
    paths = re.findall(r'd="([^"]*)"[^>]*style="fill: none; stroke: var\(--series-0\); stroke-width: ([\d.]+)', svg)
    assert [float(width) for _, width in paths] == [0.9, 2.0]
    heights = [float(y) for path, _ in paths for _, y in re.findall(r"[ML] (\S+) (\S+)", path)]
    assert is_affine([*steps, *(row["val_ra"] for row in METRICS)], heights)
    assert "under one step from 20.0 % to 90.0 %" in label(html, "Robust accuracy on")
    assert "FGSM" in sections(html)["Training"] and "FGSM" not in render([run()], title="x")


def test_gradient_alignment_is_drawn() -> None:
    rows = [row | {"val_alignment": 0.9 - 0.1 * row["epoch"]} for row in METRICS]
    told = label(render([run(metrics=rows)], title="x"), "Gradient alignment")
    assert "fast-bat from 0.80 to 0.50" in told


# --- alarms, landscape, commands -------------------------------------------------------------------------------------


def test_alarms_are_on_top_each_once() -> None:
    section = Section("Accuracy", Table(("a", "b"), [["c", "d"]]), ["note"], [("run-seed1", "It fell."), ("r", "Bad.")])
    html = render(
        [run(alarms=["It fell.", "Other."], evaluation=JUDGED | {"warnings": ["Bad."]})], title="x", first=[section]
    )
    top = html.partition("<section>")[0]
    assert re.findall(r'class="alarm"><strong>(.*?):</strong> (.*?)</p>', top) == [
        ("run-seed1", "It fell."),
        ("r", "Bad."),
        ("fast-bat", "Other."),
    ]
    assert html.count("It fell.") == 1
    assert 'class="alarms"' not in render([run()], title="x")


def png() -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({}):
        Figure(figsize=(2, 1)).savefig(buffer, format="png")
    return buffer.getvalue()


def test_a_landscape_is_shown_as_it_was_drawn_or_the_command_named() -> None:
    command = "adv-train plot landscape runs/a"
    shown = run("shown", landscape=Picture(png(), "Loss <of> it."), landscape_command=command, examples=None)
    part = sections(render([shown], title="x"))["Loss landscape"]
    (image,) = Page(part).all("img")
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == png()
    assert "Loss <of> it." in image["alt"] and command not in Page(part).text
    missing = replace(shown, landscape=None, landscape_command=f"{command} --eps 0.1")
    text = Page(sections(render([shown, missing], title="x"))["Loss landscape"]).text
    assert f"{command} --eps 0.1" in text and "for the other runs" in text
    assert "Loss landscape" not in sections(render([run()], title="x"))


def test_the_commands_that_make_it_again_are_those_of_a_terminal() -> None:
    train, judge = once_more(Path("runs/my run"), ["eval", "runs/my run", "--attacks", "pgd, square(queries=10)"])
    assert shlex.split(train.command) == [
        "adv-train", "fit", "--config", "runs/my run/config.yaml", "--out", "runs/my run-again",
    ]  # fmt: skip
    assert shlex.split(judge.command)[1:] == ["eval", "runs/my run", "--attacks", "pgd, square(queries=10)"]
    html = render([run()], title="x", again=[train, judge], next_steps=[NextStep("More.", "adv-train list")])
    text = Page(sections(html)["How to reproduce this page"]).text
    assert train.command in text and judge.command in text
    assert "adv-train list" in Page(sections(html)["What to run next"]).text
    shorter, longer, _ = once_more(Path("runs/my run"), ["eval", "runs/my run"], (20,))
    assert longer.command == train.command and shorter.command == f"{train.command} --epochs 20"

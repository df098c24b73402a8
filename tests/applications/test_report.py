"""The report: true to its input, whole in one file, and safe with whatever text it is given."""

from __future__ import annotations

import csv
import io
import re
import string
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adv_train.errors import UserError
from adv_train.evaluation import Examples
from adv_train.report import NextStep, render, results_table, write_report, write_table
from tests.applications.report_pages import (
    EVALUATION,
    HOSTILE,
    METRICS,
    Page,
    examples,
    per_class,
    pictures,
    run,
    sections,
)

# --- the table in text -----------------------------------------------------------------------------------------------


def test_the_text_table_holds_what_was_measured() -> None:
    bare = run("plain", evaluation={}, seconds_per_epoch=None, forward_equivalents=None, implicit_share=None)
    assert results_table([run(), bare]).splitlines() == [
        "| method   |     SA | RA-PGD |  RA-AA | s/epoch | F/step | implicit share |",
        "| -------- | -----: | -----: | -----: | ------: | -----: | -------------: |",
        "| fast-bat | 97.5 % | 68.6 % | 65.8 % |    0.35 |   10.9 |          0.7 % |",
        "| plain    |      – |      – |      – |       – |      – |              – |",
    ]


def test_a_name_cannot_break_the_text_table() -> None:
    lines = results_table([run("a|b\nc")]).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| a\\|b c |")


def test_every_form_of_the_table_is_read_back_by_its_own_reader() -> None:
    runs = [run("a & b_1", evaluation=EVALUATION | {"ra": {"pgd": 0.686, "square": 0.5}}), run('x,"y"')]
    rows = list(csv.DictReader(io.StringIO(results_table(runs, "csv"))))
    assert [row["method"] for row in rows] == ["a & b_1", 'x,"y"']
    assert float(rows[0]["RA-PGD"]) == 0.686 and float(rows[0]["RA-square"]) == 0.5 and rows[1]["RA-square"] == ""
    latex = results_table(runs, "latex").splitlines()
    assert latex[0] == r"\begin{tabular}{lrrrrrrr}" and latex[-1] == r"\end{tabular}"
    assert latex[4].startswith(r"a \& b\_1 & 97.5 \% & 68.6 \% & 65.8 \% & 50.0 \% & 0.35 &")
    assert latex[4].endswith(r" \\") and len(re.findall(r"(?<!\\)&", latex[5])) == 7
    plain = string.ascii_letters + string.digits + ".,;:!?()[]+-*/='@"
    assert write_table(["a"], [[plain]], "latex").splitlines()[4] == rf"{plain} \\"
    with pytest.raises(UserError, match="`latex`"):
        results_table(runs, "latexx")


def test_a_small_share_is_not_written_as_zero() -> None:
    assert "< 0.1 %" in results_table([run(implicit_share=0.0004)])
    assert " 0.0 %" in results_table([run(implicit_share=0.0)])


# --- one file, safe --------------------------------------------------------------------------------------------------


@cache
def everything() -> str:
    runs = [run(published={"SA": "79.97 ± 0.12"}), run("other", config={"method": "other"})]
    step = NextStep("Train on CIFAR-10.", "adv-train fit --preset cifar10-8-fast-bat")
    return render(runs, title="Digits", next_steps=[step])


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    html = everything()
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video"} & {
        t for t, _ in page.tags
    }
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert "://" not in value and not name.startswith("on"), (tag, name, value)
            if name in ("src", "srcset", "poster", "data", "action"):
                assert value.startswith("data:image/png;base64,")
            if name.endswith("href"):
                assert value.startswith("#")
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    policy = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "default-src 'none'" in policy[0]


@pytest.mark.parametrize("where", ["name", "title", "config", "step", "versions", "published", "class", "warning"])
def test_hostile_text_stays_text(where: str) -> None:
    arguments: dict[str, Any] = {"title": "Digits", "versions": {"torch": "2"}}
    summary = run(HOSTILE) if where == "name" else run(metrics=[])
    if where == "title":
        arguments["title"] = HOSTILE
    if where == "config":
        summary = run(config={HOSTILE: {HOSTILE: HOSTILE}}, metrics=[])
    if where == "step":
        arguments["next_steps"] = [NextStep(HOSTILE, HOSTILE)]
    if where == "versions":
        arguments["versions"] = {HOSTILE: HOSTILE}
    if where == "published":
        summary = run(published={HOSTILE: HOSTILE}, metrics=[])
    if where == "class":
        summary = run(class_names=[HOSTILE] * 3, evaluation=EVALUATION | {"per_class": per_class(HOSTILE)}, metrics=[])
    if where == "warning":
        summary = run(evaluation=EVALUATION | {"warnings": [HOSTILE], "checkpoint": HOSTILE}, metrics=[])
    page = Page(render([summary], **arguments))
    assert not page.all("script")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert HOSTILE in page.text


def test_every_picture_says_what_it_shows_and_every_reference_has_its_target() -> None:
    html = everything()
    page = Page(html)
    assert page.all("img") and all(image["alt"] for image in page.all("img"))
    drawings = page.all("svg")
    assert drawings and all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in drawings)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#([^)]*)\)", html) + [
        attributes["href"][1:] for _, attributes in page.tags if "href" in attributes
    ]
    assert references and set(references) <= set(ids)
    assert page.all("html")[0]["lang"] == "en"


# --- true to the input -----------------------------------------------------------------------------------------------


def test_published_figures_are_in_a_table_of_their_own() -> None:
    parts = sections(everything())
    assert "79.97 ± 0.12" in Page(parts["Published figures"]).text and "79.97" not in parts["Results"]
    assert "97.5 %" in parts["Results"] and "97.5" not in parts["Published figures"]
    assert "Published figures" not in sections(render([run()], title="Digits"))


def test_a_curve_runs_through_the_recorded_values() -> None:
    drawing = re.search(r'<svg[^>]*aria-label="Robust accuracy.*?</svg>', everything(), flags=re.DOTALL)
    assert drawing is not None
    (line,) = re.findall(r'd="([^"]*)"[^>]*var\(--series-0\)', drawing[0])
    points = np.array(re.findall(r"[ML] (\S+) (\S+)", line), dtype=float)
    for drawn, recorded in zip(points.T, ([1, 2, 3, 4], [0.1, 0.5, 0.3, 0.65]), strict=True):
        slope, offset = np.polyfit(recorded, drawn, 1)
        assert np.allclose(slope * np.array(recorded) + offset, drawn, atol=1e-3)
    assert "fast-bat from 10.0 % to 65.0 %" in drawing[0]


def test_only_runs_with_an_implicit_part_are_in_the_chart_of_its_share() -> None:
    without = run("fast-at", metrics=[row | {"implicit_share": 0.0} for row in METRICS])
    unknown = run("standard", metrics=[row | {"implicit_share": None} for row in METRICS])
    labels = [svg.get("aria-label", "") for svg in Page(render([without, unknown, run()], title="x")).all("svg")]
    (share,) = [label for label in labels if label.startswith("Share of the implicit")]
    assert "fast-bat from 1.0 % to 4.0 %" in share and "fast-at" not in share and "standard" not in share
    labels = [svg.get("aria-label", "") for svg in Page(render([without], title="x")).all("svg")]
    assert not any(label.startswith("Share of the implicit") for label in labels)


def test_a_run_of_one_epoch_and_a_value_that_is_not_finite_are_drawn() -> None:
    rows = [METRICS[0], METRICS[1] | {"loss": float("inf"), "val_ra": float("nan")}]
    html = render([run(metrics=rows), run("one", metrics=METRICS[:1])], title="x")
    assert "fast-bat from 10.0 % to 10.0 %; one from 10.0 % to 10.0 %" in html


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pictures_are_the_images(channels: int) -> None:
    shown = examples(channels)
    drawn = pictures(render([run(examples=shown, metrics=[])], title="x"))
    assert len(drawn) == 9
    for column, images in ((0, shown.clean), (2, shown.adversarial)):
        for picture, image in zip(drawn[column::3], images, strict=True):
            colours = np.broadcast_to(image, (3, 4, 4)).transpose(1, 2, 0)
            assert np.abs(picture[..., :3] - colours).max() <= 1.01 / 255


def test_a_perturbation_shows_its_sign_and_where_nothing_changed() -> None:
    clean = np.full((1, 1, 1, 3), 0.5, dtype=np.float32)
    change = np.array([-0.2, 0.0, 0.2], dtype=np.float32).reshape(1, 1, 1, 3)
    label = np.zeros(1, dtype=np.int64)
    html = render([run(examples=Examples(clean, clean + change, label, label, label), metrics=[])], title="x")
    darker, same, brighter = pictures(html)[1][0, :, :3]
    assert darker[0] > 2 * darker[2] and brighter[2] > 2 * brighter[0] and same.min() > 0.95


def test_the_gallery_counts_what_broke_and_marks_each_verdict() -> None:
    part = sections(render([run(metrics=[])], title="x"))["What the attack does"]
    assert "2 of 3 broken" in part
    assert [part.count(mark) for mark in ("✓", "✗")] == [4, 2]
    assert "no class ✗" in part


def test_classes_are_called_by_their_names() -> None:
    shown = run(metrics=[], class_names=["cat", "dog", "owl"], evaluation=EVALUATION | {"per_class": per_class("cat")})
    parts = sections(render([shown], title="x"))
    assert "cat ✓" in parts["What the attack does"] and "owl ✗" in parts["What the attack does"]
    assert "clean image of class dog" in parts["What the attack does"]
    rows = re.findall(r'<th scope="row">(.*?)</th>', parts["Each class"])
    assert rows == ["cat"] and "90.0 %" in parts["Each class"]


def test_the_page_says_which_checkpoint_was_judged_and_what_makes_its_figures_doubtful() -> None:
    said = {"checkpoint": "last.pt", "epoch": 7, "norm": "linf", "warnings": ["Masked gradients: all of it."]}
    html = render([run(metrics=[], evaluation=EVALUATION | said)], title="x")
    assert "evaluated last.pt (epoch 7), 360 images, linf, ε = 0.2" in sections(html)["Results"]
    assert "Masked gradients: all of it." in html.partition("<section>")[0]
    assert "All evaluations" not in sections(html)


def test_all_evaluations_of_a_run_are_listed() -> None:
    first = EVALUATION | {"checkpoint": "best.pt", "ra": {"pgd": 0.686, "autoattack": 0.658}}
    second = first | {"checkpoint": "last.pt", "n": 10, "eps": 0.1, "ra": {"pgd": 0.5}}
    part = sections(render([run(metrics=[], records=[first, second])], title="x"))["All evaluations"]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in part.split("<tr>")[2:]]
    cells = [[Page(cell).text for cell in row] for row in rows]
    assert cells[0] == ["best.pt", "0.2", "360", "pgd 50 × 10", "97.5 %", "68.6 %", "65.8 %"]
    assert cells[1] == ["last.pt", "0.1", "10", "pgd 50 × 10", "97.5 %", "50.0 %", "–"]


def test_settings_that_differ_are_told_apart_from_those_that_do_not() -> None:
    runs = [
        run("a", config={"eps": 0.2, "options": {"step": 5.0}}),
        run("b", config={"eps": 0.2, "options": {"step": 1}}),
    ]
    differing, common = sections(render(runs, title="x", versions={}))["Configuration"].split("<details>")
    assert "options.step" in differing and "eps" not in differing
    assert "eps" in common and "options.step" not in common


def test_the_versions_of_the_process_are_recorded() -> None:
    part = sections(render([run(metrics=[])], title="x"))["Configuration"]
    assert torch.__version__.split("+")[0] in part and "pyautoattack" in part


@pytest.mark.parametrize("other", [{"eps": 0.1}, {"data": "cifar100"}, {"images": "abc"}])
def test_the_winner_is_named_only_among_runs_that_compare(other: dict[str, Any]) -> None:
    figure, digits = "Robust against clean accuracy", EVALUATION | {"data": "digits"}
    best = run(evaluation=digits, metrics=[])
    weaker = run("weaker", evaluation=digits | {"ra_aa": 0.4}, metrics=[])
    page = render([weaker, best], title="x")
    assert "65.8 % of 360 test images" in page and figure in page
    page = render([run("elsewhere", evaluation=digits | {"ra_aa": 0.9} | other, metrics=[]), best], title="x")
    assert "of 360 test images" not in page and figure not in page


def test_the_note_on_chance_is_the_binomial_standard_error() -> None:
    half = run(evaluation=EVALUATION | {"sa": 0.5, "ra_pgd": None, "ra_aa": None, "n": 100})
    assert "±5.0 points" in render([half], title="x")


def test_a_report_with_nothing_to_show_is_still_a_page() -> None:
    empty = run(evaluation={}, metrics=[], examples=None, config={})
    page = sections(render([empty], title="x", versions={}))
    assert page.keys() == {"Results"}
    assert "<h1>x</h1>" in render([], title="x")


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_the_page_is_written_whole_and_the_same_each_time(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, [run()], title="x", versions={"torch": "2"})
    first = path.read_bytes()
    write_report(path, [run()], title="x", versions={"torch": "2"})
    assert path.read_bytes() == first
    assert first.startswith(b"<!doctype html>") and first.rstrip().endswith(b"</html>")
    with pytest.raises(UserError, match="Cannot write"):
        write_report(tmp_path / "missing" / "report.html", [run()], title="x")

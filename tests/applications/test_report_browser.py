"""The report as a browser lays it out: on a phone and on a screen, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adv_train.report import NextStep, Picture, Section, Table, write_report
from tests.applications.browser import FOUND, Browser, browser
from tests.applications.report_pages import METRICS, examples, per_class, run
from tests.applications.test_report_parts import JUDGED, SETTINGS, png, scatter

pytestmark = pytest.mark.skipif(FOUND is None, reason="there is no Chromium on this machine")

ROWS = [row | {"val_fgsm": 0.7, "val_top_class": 0.1, "val_alignment": 0.9} for row in METRICS]
LONG = "pgd-at(steps=10,step=0.025,attack_loss=margin)"
CELL = "cifar10-16-fast-at-ga-preact-resnet-50"
COMMAND = NextStep("Again.", f"adv-train compare --methods '{LONG}' --out " + "a-folder-with-a-long-name/" * 4)

# What is off the page; boxes that scroll sideways; what is hidden; texts of drawings that leave them.
CUT_OFF = """
(() => {
  const wide = innerWidth + 0.5, found = [];
  const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const boxed = e => { for (let p = e.parentElement; p; p = p.parentElement) if (scrolls(p)) return p; return null; };
  for (const e of document.querySelectorAll("main *")) {
    const r = e.getBoundingClientRect();
    if (!r.width) continue;
    const box = boxed(e), style = getComputedStyle(e);
    if (!box && (r.right > wide || r.left < -0.5)) found.push(["off the page", e.outerHTML.slice(0, 99), r.right]);
    if (box && box.getBoundingClientRect().right > wide) found.push(["a box off the page", box.outerHTML.slice(0, 99)]);
    const hidden = style.overflowX === "hidden", over = e.clientWidth && e.scrollWidth > e.clientWidth + 1;
    if (over && !e.ownerSVGElement && !scrolls(e) && (hidden || !box))
      found.push([hidden ? "hidden" : "overflows", e.outerHTML.slice(0, 99), e.scrollWidth]);
    if (scrolls(e) && e.scrollWidth > e.clientWidth + 1)
      found.push(["scrolls", e.innerHTML.trim().slice(0, 99), e.scrollWidth, e.clientWidth]);
    if (e.tagName.toLowerCase() === "text") {
      const s = e.ownerSVGElement.getBoundingClientRect();
      if (r.left < s.left - 2 || r.right > s.right + 2 || r.top < s.top - 2 || r.bottom > s.bottom + 2)
        found.push(["outside of its drawing", e.textContent, r.left - s.left, r.right - s.right]);
    }
  }
  return found;
})()
"""
# Texts whose contrast to what is behind them is below 4.5, that of WCAG AA.
PALE = """
(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const under = e => {  // the shape that a text of a drawing lies on
    e.scrollIntoView({block: "center"});
    const r = e.getBoundingClientRect();
    for (const o of document.elementsFromPoint((r.left + r.right) / 2, (r.top + r.bottom) / 2)) {
      const {fill, fillOpacity, opacity} = getComputedStyle(o);
      const shape = o.namespaceURI.endsWith("svg") && !["svg", "text", "tspan"].includes(o.localName);
      if (shape && parse(fill).length && fillOpacity !== "0" && opacity !== "0") return parse(fill);
    }
    return null;
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), drawn = e.namespaceURI.endsWith("svg");
    const ends = [light(parse(drawn ? style.fill : style.color)), light((drawn && under(e)) || behind(e))];
    ends.sort((a, b) => b - a);
    const contrast = (ends[0] + 0.05) / (ends[1] + 0.05);
    if (contrast < 4.5) found.push([contrast, e.outerHTML.slice(0, 120)]);
  }
  return found;
})()
"""
PICTURES = "[...document.images].map(i => i.complete && i.naturalWidth > 0)"
WHOLE_WORDS = "[...document.querySelectorAll('pre span')].every(s => s.getClientRects().length === 1)"
MAIN = "[...document.querySelectorAll('.main-figure svg')].map(s => s.getBoundingClientRect().toJSON())"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    names = ["airplane", "a class with a long name", *(f"class-{i}" for i in range(8))]
    alarm = "Catastrophic overfitting: " + "it lost what it had. " * 8
    rolled = [*ROWS[:3], ROWS[3] | {"rolled_back_to": 2}]
    judged = JUDGED | {"per_class": per_class(*names), "warnings": ["Masked gradients: `square` tells."]}
    one = run(
        evaluation=judged | {"weights": "f" * 200},
        config=SETTINGS | {"data": {"name": "imagefolder:" + "/long-folder" * 20}},
        metrics=rolled,
        records=[judged, judged | {"checkpoint": "last.pt"}],
        class_names=names,
        examples=examples(3, 6),
        best_epoch=2,
        alarms=[alarm],
        landscape=Picture(png(), "Loss around images."),
    )
    bare = run("bare", evaluation={}, metrics=[], examples=None, config={})
    # As many columns as the tables of `adv-train table` and `adv-train compare` with AutoAttack have.
    columns = ("best", "last", "published")
    measured = [f"{measure} {column}" for measure in ("SA", "RA-PGD", "RA-AA") for column in columns]
    header = ("method", "seeds", *measured, "s/epoch", "s/epoch published", "F/batch", "alarms")
    rows = [[name, "8 of 10", *["46.15? ± 13.65 %"] * 9, "1203.45", "592.7", "11.1", "2"] for name in (LONG, CELL)]
    section = Section("Accuracy", Table(header, rows), ["A note."], [("fast-at-seed0", alarm)])
    differences = Table(("method", *["RA-AA best", "p"] * 6), [[LONG, *["-12.3 [-15.0, +10.1]", "< 0.001"] * 6]])
    many = per_class(*(f"c{i}" for i in range(10))) * 3
    runs = [
        run(
            LONG,
            evaluation=JUDGED | {"per_class": many},
            metrics=ROWS,
            best_epoch=1,
            landscape_command=f"adv-train plot landscape '{LONG}-seed0'",
        ),
        run("fast-at", evaluation=JUDGED),
    ]
    content: dict[str, dict[str, Any]] = {
        "run": {"runs": [one], "again": [COMMAND]},
        "comparison": {
            "runs": runs,
            "first": [section, Section("Differences", differences)],
            "figures": [scatter(), scatter(title="B")],
            "again": [COMMAND],
        },
        "runs": {"runs": [*runs, run("third", evaluation=JUDGED | {"sa": 0.5})], "next_steps": [COMMAND]},
        "bare": {"runs": [bare]},
    }
    paths = {name: folder / f"{name}.html" for name in content}
    for name, given in content.items():
        write_report(paths[name], title=f"A report of {name} on imagefolder:a-folder", **given)
    return paths


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", ["run", "comparison", "runs", "bare"])
def test_all_of_the_page_can_be_seen(opened: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    opened.open(pages[name], width)
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert opened.evaluate("[innerWidth, document.documentElement.clientWidth]") == [width, width]
    assert opened.evaluate(CUT_OFF) == []
    assert opened.evaluate("document.scrollingElement.scrollWidth") <= width
    loaded, mains = opened.evaluate(PICTURES), opened.evaluate(MAIN)
    assert all(loaded) and len(loaded) == {"run": 19, "comparison": 18, "runs": 27, "bare": 0}[name]
    assert len(mains) == {"run": 1, "comparison": 2, "runs": 1, "bare": 0}[name]
    for box in mains:
        assert box["left"] >= 0 and box["right"] <= width and box["width"] >= 250 and box["height"] >= 80
    assert opened.evaluate(WHOLE_WORDS)
    assert opened.said == [] and {url.partition(":")[0] for url in opened.asked} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in opened.asked) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_all_text_stands_out(opened: Browser, pages: dict[str, Path], name: str, scheme: str) -> None:
    opened.open(pages[name], 1200, scheme=scheme)
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    shade = opened.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (np.mean(shade) > 128) == (scheme == "light")
    assert opened.evaluate(PALE) == []


def test_the_checks_see_what_is_cut_off_pale_and_missing(opened: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><main><p style='width:500px'>wide</p>"
        "<p style='color:#999'>pale</p><div style='width:50px;overflow:hidden;white-space:nowrap'>hidden words</div>"
        "<h2>onewordthatgoesonandonandonandonandonandon</h2>"
        "<svg width=50 height=20><text x=30 y=15>longer than it</text></svg>"
        "<svg width=90 height=20><rect width=90 height=20 fill='#777' /><text x=5 y=15 fill='#999'>faint</text></svg>"
        "<img src='data:image/png;base64,AAAA'>"
        "<script>console.error('oh')</script><div style='overflow-x:auto'><p style='width:600px'>in a box</p></div>"
    )
    opened.open(page, 390)
    kinds = {kind for kind, *_ in opened.evaluate(CUT_OFF)}
    assert kinds == {"off the page", "hidden", "overflows", "outside of its drawing", "scrolls"}
    pale, faint = opened.evaluate(PALE)
    assert "pale" in pale[1] and "faint" in faint[1] and opened.evaluate(PICTURES) == [False] and len(opened.said) == 1

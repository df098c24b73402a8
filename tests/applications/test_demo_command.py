"""`adv-train demo`: four methods trained, judged and reported, once."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from adv_train.cli import demo, main
from adv_train.config import resolve
from adv_train.records import RunFolder

WORDS = ["--epochs", "1", "--limit", "2", "--seed", "3"]
METHODS = ("standard", "pgd-at")  # all four would take a minute


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "METHODS", METHODS)
        assert main(["demo", "--out", str(folder), *WORDS]) == 0
        yield folder


def test_the_methods_are_trained_judged_and_reported(out: Path) -> None:
    for method in METHODS:
        run = RunFolder(out / method)
        assert run.config().method_name == method and run.config().training.seed == 3 and len(run.metrics()) == 1
        found = json.loads((out / method / "eval.json").read_text())
        assert found["n"] == 2 and {"steps": 50, "restarts": 10}.items() <= found["attacks"]["pgd"].items()
        assert found["ra_aa"] is not None
    page = (out / "report.html").read_text()
    assert all(name in page for name in ("standard", "pgd-at, 2 steps", "2 test images"))


def test_what_is_done_is_not_done_again_and_all_of_it_is_shown(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "report.html").unlink()
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert main(["demo", "--out", str(out), *WORDS]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["standard", "pgd-at, 2 steps"]
    assert "2 test images" in said and str(out / "report.html") in said and (out / "report.html").is_file()
    with pytest.raises(AssertionError, match="a process was started"):
        main(["demo", "--out", str(out), *WORDS[:2], "--limit", "3", *WORDS[4:]])


def test_the_runs_of_another_demo_are_left_as_they_are(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(out), *WORDS[:4], "--seed", "4"]) == 2
    assert "differs in seed (4, not 3)" in capsys.readouterr().err


def test_a_run_that_fails_ends_the_demo_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "METHODS", ("standard", "fast-bat"))
    monkeypatch.setattr(demo, "run_cells", lambda cells, **_: ((cell, "no luck") for cell in cells))
    assert main(["demo", "--out", str(tmp_path / "out"), *WORDS]) == 2
    assert "fast-bat: no luck" in capsys.readouterr().err


def test_a_cell_is_done_when_it_is_trained_to_the_end_and_judged_in_full(out: Path, tmp_path: Path) -> None:
    cell = demo._cell("standard", out, 2, {"seed": 3, "epochs": 1})
    assert cell.is_done() and list(cell.commands()) == []
    (judgement,) = cell.judgements
    more = dataclasses.replace(judgement, images=3)
    assert not dataclasses.replace(cell, judgements=(more,)).is_done()
    assert not dataclasses.replace(cell, out=tmp_path).is_done()
    said = {"seed": 3, "epochs": 1}
    for other in ({"epochs": 2}, {"eps": 0.1}):
        assert not dataclasses.replace(cell, config=resolve(said | other, preset="digits-standard")).is_done()
    assert main(["eval", str(out / "standard"), "--limit", "2", "--no-autoattack", "--eps", "0.1", "--quiet"]) == 0
    assert not dataclasses.replace(cell, config=resolve(said | {"eps": 0.1}, preset="digits-standard")).is_done()

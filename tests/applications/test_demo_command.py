"""`adv-train demo`: four methods trained, judged and reported, once; and its processes, however they end."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adv_train.cli import demo, main, parts
from adv_train.config import resolve
from adv_train.errors import UserError
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


def test_a_part_is_done_when_it_is_trained_to_the_end_and_judged_in_full(out: Path, tmp_path: Path) -> None:
    part = demo._part("standard", out, 2, {"seed": 3, "epochs": 1})
    assert part.is_done()
    assert not dataclasses.replace(part, images=3).is_done()
    assert not dataclasses.replace(part, out=tmp_path).is_done()
    longer = resolve({"seed": 3, "epochs": 2}, preset="digits-standard")
    assert not dataclasses.replace(part, config=longer).is_done()
    assert main(["eval", str(out / "standard"), "--limit", "2", "--no-autoattack", "--eps", "0.1", "--quiet"]) == 0
    assert not dataclasses.replace(part, config=resolve({"eps": 0.1}, preset="digits-standard")).is_done()


# --- processes -------------------------------------------------------------------------------------------------------

SCRIPT = """
import json, pathlib, sys, time
fit, judge = json.loads(sys.argv[1])
out = pathlib.Path(fit[fit.index("--out") + 1])
out.mkdir()
if out.name == "bad":
    while not (out.parent / "slow").exists():
        time.sleep(0.01)
    sys.exit("adv-train: error: no luck")
time.sleep(float("0" if out.name == "quick" else "15"))
(out / "words").write_text(json.dumps([fit, judge]))
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(parts, "COMMANDS_IN_TURN", SCRIPT)
    monkeypatch.setattr(parts, "_processors", lambda: 2)
    config = resolve({}, preset="digits-standard")
    return lambda name: parts.Part(name, tmp_path / name, config, ("--preset", "digits-standard"), 7)


def test_when_a_part_fails_the_others_are_stopped_and_its_reason_is_told(made: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^bad: no luck$"):
        parts.run_parts([made("late"), made("later"), made("slow"), made("bad")], progress=False)
    assert (tmp_path / "slow").exists() and not list(tmp_path.glob("*/words"))


@pytest.mark.parametrize(("progress", "told"), [(None, "quick: trained and judged\n"), (False, "")])
def test_a_part_is_trained_and_then_judged_on_its_images(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], progress: bool | None, told: str
) -> None:
    parts.run_parts([made("quick")], progress=progress)
    out = str(tmp_path / "quick")
    fit, judge = json.loads((tmp_path / "quick/words").read_text())
    assert fit == ["fit", "--preset", "digits-standard", "--out", out, "--progress"]
    assert judge == ["eval", out, "--limit", "7", "--progress"]
    assert capsys.readouterr().err == told


def test_commands_run_in_turn_until_one_fails(tmp_path: Path) -> None:
    words = json.dumps([["list", "attacks"], ["list", "nothing"], ["list", "data"]])
    found = subprocess.run([sys.executable, "-c", parts.COMMANDS_IN_TURN, words], capture_output=True, text=True)
    assert found.returncode == 2 and "attacks:" in found.stdout and "data:" not in found.stdout

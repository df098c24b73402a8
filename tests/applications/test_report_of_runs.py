"""The report of runs that were trained: what the commands write into it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

import adv_train
from adv_train.cli import main
from adv_train.summaries import summarise
from tests.applications.report_pages import Page, sections

QUICK = ["--attacks", "pgd", "--pgd-steps", "2", "--pgd-restarts", "1", "--limit", "20", "--device", "cpu", "--quiet"]
DRAW = ["--points", "3", "--images", "10", "--range", "1", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top, found = tmp_path_factory.mktemp("runs"), {}
    for name in ("fast-at", "standard"):
        found[name] = top / name
        few = {"epochs": 2, "train_limit": 60, "batch_size": 20, "validation_steps": 1, "device": "cpu"}
        adv_train.fit(data="digits", method=name, eps=0.2, out=str(found[name]), progress=False, **few)
        assert main(["eval", str(found[name]), *QUICK]) == 0
    return found


@pytest.fixture
def run(trained: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(trained["fast-at"], tmp_path / "fast-at")


def page(run: Path, *words: str) -> str:
    assert main(["eval", str(run), *QUICK, *words, "--report"]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_landscape_is_shown_when_it_was_drawn(run: Path) -> None:
    before = sections(page(run))["Loss landscape"]
    assert f"adv-train plot landscape {run}" in Page(before).text and not Page(before).all("img")
    assert main(["plot", "landscape", str(run), *DRAW]) == 0
    (image,) = Page(sections(page(run))["Loss landscape"]).all("img")
    rows = list(csv.DictReader((run / "plots/landscape.csv").read_text().splitlines()))
    loss = {(row["adversarial_in_eps"], row["random_in_eps"]): float(row["loss"]) for row in rows}
    for place, told in {("0.0", "0.0"): "at the images", ("1.0", "0.0"): "one ε against the model"}.items():
        assert f"{loss[place]:.3g} nats {told}" in image["alt"]
    assert "mean over 10 test images" in image["alt"] and "not those evaluated" not in image["alt"]
    assert (rows[0]["checkpoint"], int(rows[0]["epoch"])) == ("best.pt", summarise(run).best_epoch)

    assert main(["plot", "landscape", str(run), "--checkpoint", "last", *DRAW]) == 0
    (image,) = Page(sections(page(run))["Loss landscape"]).all("img")
    assert "The weights are those of last.pt, epoch 2, not those evaluated" in image["alt"]


@pytest.mark.parametrize("damage", ["landscape.csv", "landscape.png", "another run"])
def test_a_landscape_that_is_not_whole_is_to_be_drawn_again(run: Path, trained: dict[str, Path], damage: str) -> None:
    runs = [str(run), *([str(trained["standard"])] if damage == "another run" else [])]
    assert main(["plot", "landscape", *runs, *DRAW, "--out", str(run / "plots")]) == 0
    if damage != "another run":
        assert summarise(run).landscape is not None
        (run / "plots" / damage).write_text("run,loss\nx,1\n")
    assert summarise(run).landscape is None


def test_a_run_that_lost_its_robustness_says_so_on_top_where_it_trains_on_attacks(
    run: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(trained["standard"], tmp_path / "standard")
    for folder in (run, other):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line, robust in zip(lines, (0.6, 0.0), strict=True):
            line.update(val_sa=0.9, val_ra=robust, val_fgsm=0.9)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    top = page(run).partition("<section>")[0]
    assert "Catastrophic overfitting" in top and "60.0% after epoch 1 and 0.0% after epoch 2" in top
    assert summarise(other).alarms == () and summarise(run).best_epoch == 1


def test_the_page_has_the_commands_that_wrote_it(run: Path) -> None:
    text = Page(sections(page(run, "--seed", "1"))["How to reproduce this page"]).text
    words = " ".join(["adv-train", "eval", str(run), *QUICK, "--seed", "1", "--report"])
    assert words in text and f"--config {run}/config.yaml --out {run}-again" in text
    again = run.with_name("fast-at-again")
    assert main(["fit", "--config", str(run / "config.yaml"), "--out", str(again), "--quiet"]) == 0
    assert (again / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_runs_whose_radius_is_zero_are_asked_for_one(trained: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "zero"
    few = {"epochs": 1, "train_limit": 60, "batch_size": 20, "validation_steps": 1, "device": "cpu"}
    adv_train.fit(data="digits", method="standard", eps=0.0, out=str(run), progress=False, **few)
    assert main(["eval", str(run), *QUICK, "--eps", "0.1"]) == 0
    command = summarise(run).landscape_command
    assert command == f"adv-train plot landscape {run} --eps 0.1"
    assert main([*command.split()[1:], *DRAW]) == 0

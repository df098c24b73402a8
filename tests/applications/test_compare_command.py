"""`adv-train compare`: paired runs at equal cost, judged and summed up; resumed, failing, and refused."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adv_train import comparison, evaluation, models
from adv_train.bench.count import forward_equivalents
from adv_train.cli import main, processes
from adv_train.comparison import Cell
from adv_train.data import Batch
from adv_train.methods import METHODS
from adv_train.records import RunFolder
from adv_train.threat import Threat

METHODS_WRITTEN = "fast-at, pgd-at(steps=3,step=0.2), fast-bat(ig_weight=0)"
NAMES = ["fast-at", "pgd-at(steps=3, step=0.2)", "fast-bat(ig_weight=0)"]
FOLDERS = ["fast-at", "pgd-at-steps=3-step=0.2", "fast-bat-ig_weight=0"]
TOY = ["--data", "digits", "--eps", "0.2", "--train-limit", "60", "--batch-size", "20", "--validation-steps", "1"]
TOY += ["--device", "cpu", "--limit", "20", "--pgd-steps", "2", "--pgd-restarts", "1", "--quiet"]
WORDS = ["--methods", METHODS_WRITTEN, "--seeds", "3", "--epochs", "2", "--cost", "7F", *TOY]
SEEDS = range(3)


def here(_: Any, cell: Cell, words: list[str], __: Callable[[str], None]) -> str | None:
    """Do the work of a process in this one."""
    with cell.run.claim(cell.config):
        pass
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        failed = main([*(word for word in words if word != "--progress"), "--quiet"])
    return said.getvalue().strip() if failed else None


def nowhere(_: Any, cell: Cell, *__: Any) -> str | None:
    raise AssertionError(f"{cell.name} was started")


@contextlib.contextmanager
def work(runs: Callable[..., str | None]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_processors", lambda: 1)
        patch.setattr(processes._Processes, "run", runs)
        yield


def compare(out: Path, *words: str, by: Callable[..., str | None] = here) -> int:
    with work(by):
        return main(["compare", *words, "--out", str(out)])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    assert compare(out, *WORDS) == 0
    return out


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return found


def judged(run: Path, checkpoint: str) -> dict[str, float]:
    """Read the accuracies of a checkpoint from the arrays of its evaluation."""
    epoch = torch.load(run / f"{checkpoint}.pt", weights_only=False)["epoch"]
    (path,) = [p for p in (run / "evaluations").glob("*.npz") if f"-epoch{epoch}-" in p.name]
    with np.load(path) as arrays:
        return {name: float(arrays[key].mean()) for name, key in (("sa", "clean"), ("pgd", "pgd"))}


# --- what is trained, and what is told of it --------------------------------------------------------------------------


def test_every_method_gets_the_epochs_that_cost_the_same_and_the_same_seeds(done: Path) -> None:
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    model = models.create("small-cnn", channels=1, classes=10, image_size=8, mean=[0.5], std=[0.5], seed=0)
    options: list[tuple[str, dict[str, Any]]] = [
        ("fast-at", {}),
        ("pgd-at", {"steps": 3}),
        ("fast-bat", {"ig_weight": 0}),
    ]
    for folder, (method, chosen) in zip(FOLDERS, options, strict=True):
        made = METHODS.create(method, **chosen)
        forwards = forward_equivalents(made, model, Batch(x, y, torch.arange(2)), Threat("linf", 0.2))
        for seed in SEEDS:
            run = RunFolder(done / f"{folder}-seed{seed}")
            config = run.config()
            assert config.method_name == method and config.training.seed == seed
            assert config.training.epochs == round(2 * 7 / forwards) == len(run.metrics())
    assert [RunFolder(done / f"{folder}-seed0").config().training.epochs for folder in FOLDERS] == [3, 2, 2]


def test_accuracies_are_those_of_the_evaluations_seed_by_seed(done: Path) -> None:
    found = record(done)
    assert [method["name"] for method in found["methods"]] == NAMES and found["baseline"] == NAMES[0]
    for folder, method in zip(FOLDERS, found["methods"], strict=True):
        assert len(method["accuracies"]) == 4
        for entry in method["accuracies"]:
            truth = [judged(done / f"{folder}-seed{s}", entry["checkpoint"])[entry["measure"]] for s in SEEDS]
            assert list(entry["by_seed"].values()) == truth and list(entry["by_seed"]) == ["0", "1", "2"]
            assert entry["mean"] == pytest.approx(np.mean(truth)) and entry["std"] == pytest.approx(
                np.std(truth, ddof=1)
            )
            if method is not found["methods"][0]:
                first = [judged(done / f"{FOLDERS[0]}-seed{s}", entry["checkpoint"])[entry["measure"]] for s in SEEDS]
                assert entry["difference"]["mean"] == pytest.approx(np.mean(truth) - np.mean(first))


def test_records_without_weights_are_enough_for_the_tables(done: Path, tmp_path: Path) -> None:
    kept = ["config.yaml", "metrics.jsonl", "timing.jsonl", "eval.json", "outcomes.npz", "evaluations"]
    for run in done.glob("*-seed*"):
        (tmp_path / run.name).mkdir()
        for name in kept:
            copy = shutil.copytree if (run / name).is_dir() else shutil.copy
            copy(run / name, tmp_path / run.name / name)
    weights = ("best.pt", "last.pt")
    first = f"{FOLDERS[0]}-seed0"
    for name in weights:
        shutil.copy(done / first / name, tmp_path / first / name)
    assert compare(tmp_path, *WORDS) == 0
    assert (tmp_path / "comparison.md").read_text() == (done / "comparison.md").read_text()
    assert [path.parent.name for path in tmp_path.glob("*/*.pt")] == [first] * len(weights)  # nothing was trained again
    assert (tmp_path / "report.html").is_file()


def test_the_tables_show_the_record(done: Path) -> None:
    methods, text = record(done)["methods"], (done / "comparison.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    (head, _, *first), (others, _, *second) = rows[:5], rows[5:]
    assert head == [
        "method",
        "seeds",
        "SA best",
        "SA last",
        "RA-PGD best",
        "RA-PGD last",
        "epochs",
        "F/batch",
        "s/epoch",
        "alarms",
    ]
    assert others == ["method", "SA best", "p", "SA last", "p", "RA-PGD best", "p", "RA-PGD last", "p"]
    order = [("sa", "best"), ("sa", "last"), ("pgd", "best"), ("pgd", "last")]
    for row, method in zip(first, methods, strict=True):
        entries = {(entry["measure"], entry["checkpoint"]): entry for entry in method["accuracies"]}
        told = [f"{100 * entries[key]['mean']:.1f} ± {100 * entries[key]['std']:.1f} %" for key in order]
        assert row[:6] == [method["name"], "3", *told]
        assert row[6:8] == [str(method["epochs"]), f"{method['forwards']:.1f}"]
    for row, method in zip(second, methods[1:], strict=True):
        entries = {(entry["measure"], entry["checkpoint"]): entry["difference"] for entry in method["accuracies"]}
        for place, key in enumerate(order):
            gap = entries[key]
            interval = "" if gap["p"] is None else f" [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
            assert row[2 * place + 1] == f"{100 * gap['mean']:+.1f}{interval}"
    assert "trained 7/F times its epochs" in text
    assert "Difference to fast-at" in text and "20 test images, PGD-2-1" in text

    table = list(csv.DictReader(io.StringIO((done / "comparison.csv").read_text())))
    assert len(table) == 12 and float(table[4]["mean"]) == methods[1]["accuracies"][0]["mean"]
    assert table[4]["method"] == NAMES[1] and table[0]["difference"] == "" and float(table[4]["difference"]) is not None
    assert (done / "comparison.tex").read_text().count(r"\begin{tabular}") == 2
    page = (done / "report.html").read_text()
    assert "<h2>Accuracy</h2>" in page and "Difference to fast-at" in page and page.count("fast-bat(ig_weight=0)") > 2
    (figure,) = re.findall(r'aria-label="digits, linf, ε = 0.2: best.pt: (.*?)\."', page)
    for told, method in zip(figure.split("; "), methods, strict=True):
        entries = {(entry["measure"], entry["checkpoint"]): entry for entry in method["accuracies"]}
        clean, robust = (
            f"{100 * entries[key]['mean']:.1f} ± {100 * entries[key]['std']:.1f} %" for key in (order[0], order[2])
        )
        assert told == f"{method['name']} clean {clean}, robust {robust}"
    assert "over the seeds" in page and "adv-train compare" in "".join(re.findall(r"<[^>]*>|([^<]*)", page))


def test_runs_that_overfitted_to_their_attack_are_counted_and_named(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison.results, "overfitting", lambda history: f"It lost all by epoch {len(history)}.")
    out = shutil.copytree(done, tmp_path / "out")
    assert compare(out, *WORDS, "--methods", "standard, fast-at", "--seeds", "1") == 0
    text = capsys.readouterr().out
    assert "fast-at-seed0: It lost all by epoch 3." in text and "standard-seed0:" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| standard", "| fast-at"))]
    assert [row.split("|")[-2].strip() for row in rows[:2]] == ["0", "1"]


# --- going on ---------------------------------------------------------------------------------------------------------


def test_runs_that_were_evaluated_on_other_images_are_named(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    run = out / f"{FOLDERS[1]}-seed1"
    changed = [replace(each, about={**each.about, "images": "0" * 16}) for each in evaluation.read_all(run)]
    shutil.rmtree(run / "evaluations")
    for each in changed:
        evaluation.write(each, run)
    assert compare(out, *WORDS, by=nowhere) == 0
    told = re.findall(r"^(.*): .*other test images than those of (.*?):", (out / "comparison.md").read_text(), re.M)
    assert told == [(f"{run.name}, {name}.pt", f"{FOLDERS[0]}-seed0") for name in ("best", "last")]
    assert "other test images" not in (done / "comparison.md").read_text()


def test_what_is_done_is_not_done_again_and_another_baseline_costs_nothing(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(done, *WORDS, "--baseline", "fast-bat( ig_weight=0 )", by=nowhere) == 0
    assert "Difference to fast-bat(ig_weight=0)" in capsys.readouterr().out
    assert compare(done, *WORDS, "--table", "csv", by=nowhere) == 0
    assert capsys.readouterr().out == (done / "comparison.csv").read_text()
    with pytest.raises(AssertionError, match="fast-at-seed3 was started"):
        compare(done, "--methods", "fast-at", *WORDS[2:], "--seeds", "4", by=nowhere)
    with pytest.raises(AssertionError, match="was started"):
        compare(done, *WORDS, "--pgd-steps", "3", by=nowhere)


def test_one_more_seed_joins_those_that_are_there(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def watched(_: Any, cell: Cell, words: list[str], tell: Callable[[str], None]) -> str | None:
        started.extend([cell.name] if words[0] == "fit" else [])
        return here(_, cell, words, tell)

    words = ["--methods", "fast-at,fast-bat(ig_weight=0)", *WORDS[2:], "--seeds"]
    assert compare(tmp_path, *words, "1", by=watched) == 0
    text = capsys.readouterr().out
    assert "±" not in text and "[" not in text and "One seed gives no interval and no p-value" in text
    assert compare(tmp_path, *words, "2", by=watched) == 0
    assert sorted(started) == sorted(f"{folder}-seed{seed}" for seed in (0, 1) for folder in (FOLDERS[0], FOLDERS[2]))
    for mine, other in zip(record(tmp_path)["methods"], record(done)["methods"][::2], strict=True):
        for a, b in zip(mine["accuracies"], other["accuracies"], strict=True):
            assert a["by_seed"].items() <= b["by_seed"].items()  # the runs are the same, wherever they were made


def test_a_comparison_that_was_killed_goes_on_to_the_same_figures(done: Path, tmp_path: Path) -> None:
    words = ["compare", *WORDS, "--seeds", "1", "--out", str(tmp_path)]
    # Two processes for three runs, and a session of its own, so that all of it can be killed at once.
    command, quiet = [sys.executable, "-m", "adv_train", *words, "--workers", "2"], subprocess.DEVNULL
    process = subprocess.Popen(command, start_new_session=True, stdout=quiet, stderr=quiet)
    while not list(tmp_path.glob("*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with work(here):
        assert main(words) == 0
    for mine, other in zip(record(tmp_path)["methods"], record(done)["methods"], strict=True):
        for a, b in zip(mine["accuracies"], other["accuracies"], strict=True):
            assert a["by_seed"] == {"0": b["by_seed"]["0"]}


def test_a_run_that_diverges_and_one_that_collapses_are_named_and_the_rest_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = "fast-at(lr=1e12),standard(lr=0),standard(epochs=4)"
    words = ["--methods", methods, "--seeds", "1", "--epochs", "1", *TOY, "--train-limit", "400", "--limit", "60"]
    assert compare(tmp_path, *words) == 1
    said = capsys.readouterr()
    assert "fast-at-lr=1e12-seed0: " in said.err and "diverged" in said.err and said.err.count("\n") == 1
    rows = [line.split("|")[1:-1] for line in said.out.splitlines() if line.startswith("|")][2:5]
    assert [(row[1].strip(), row[-1].strip()) for row in rows] == [("0 of 1", "1"), ("1", "1"), ("1", "0")]
    assert "standard-lr=0-seed0, last.pt: Collapsed predictions" in said.out and "Training diverged" in said.out
    found = {method["name"]: method for method in record(tmp_path)["methods"]}
    assert (
        list(found["fast-at(lr=1e12)"]["failed"]) == ["fast-at-lr=1e12-seed0"]
        and not found["standard(epochs=4)"]["failed"]
    )
    assert (
        found["standard(epochs=4)"]["accuracies"][0]["n"] == 1
        and found["fast-at(lr=1e12)"]["accuracies"][0]["mean"] is None
    )
    assert "standard(epochs=4)" in (tmp_path / "report.html").read_text()


# --- what is compared -------------------------------------------------------------------------------------------------


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    capsys.readouterr()
    assert main(["compare", "--dry-run", "--device", "cpu", *words]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_a_dry_run_shows_the_runs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--methods", "standard,pgd-at,pgd-at(epochs=4)", "--data", "digits", "--cost", "7", "--epochs", "10"]
    found = dry(capsys, *words, "--seeds", "2", "--seed", "5")
    # Of a seed the longest first, in forward passes; the network's first layer costs less than a whole pass back.
    names = ["standard", "pgd-at", "pgd-at-epochs=4"]
    assert sorted(row[0] for row in found) == sorted(f"{name}-seed{seed}" for name in names for seed in (5, 6))
    assert [row[0][-1] for row in found] == list("555666") and found[2][0] == "pgd-at-epochs=4-seed5"
    assert dict(row[:2] for row in found[:3]) == {
        "standard-seed5": "24",
        "pgd-at-seed5": "10",
        "pgd-at-epochs=4-seed5": "4",
    }
    assert {row[3] for row in found} == {"to do"} and not list(tmp_path.iterdir())


def test_a_dry_run_knows_what_is_done(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = dry(capsys, *WORDS[:2], "--seeds", "2", *WORDS[4:], "--out", str(done))
    assert {row[3] for row in found} == {"done"} and len(found) == 6


def test_presets_and_files_stand_for_methods_and_flags_win_over_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("method: {name: fast-bat, curvature: 3}\nepochs: 7\nlr: 0.3\n")
    Path("all.yaml").write_text("data: digits\nepochs: 9\nlr: 0.2\nmethod: fast-at\nstep: 0.1\n")
    seen: dict[str, Any] = {}

    def look(_: Any, cell: Cell, *__: Any) -> str | None:
        seen[cell.name] = cell.config
        return "not today"

    methods = "fast-at,mine.yaml,digits-pgd-at(steps=5, train_loss=cross-entropy(smoothing=0.1)),n-fgsm(lr=0.5)"
    words = ["--methods", methods, "--seeds", "1", "--config", "all.yaml", "--quiet", "--device", "cpu"]
    assert compare(Path("out"), *words, "--batch-size", "50", "--lr", "0.4", by=look) == 1
    fast, mine, preset, noisy = (seen[name] for name in sorted(seen, key=lambda name: "fmdn".index(name[0])))
    assert (fast.method.step, fast.training.epochs, fast.optimizer.lr) == (0.1, 9, 0.4)
    assert (mine.method.curvature, mine.training.epochs, mine.optimizer.lr) == (3, 7, 0.4)
    assert (preset.method.steps, preset.method.step, preset.training.epochs) == (5, 0.2, 9)
    assert preset.method.train_loss.smoothing == 0.1 and noisy.optimizer.lr == 0.5 and noisy.method.step is None
    assert {config.training.batch_size for config in seen.values()} == {50}
    assert capsys.readouterr().err.count("not today") == 4


def test_the_network_of_every_method_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("method: standard\nmodel: preact-resnet-18\nbase_width: 4\n")
    methods = "standard,mine.yaml,standard(activation=relu)"  # relu is the default
    assert compare(Path("out"), "--methods", methods, "--seeds", "1", "--epochs", "1", *TOY) == 0
    networks = "small-cnn (standard, standard(activation=relu)), preact-resnet-18(base_width=4) (mine)"
    title = f"digits, linf, eps 0.2, {networks}: 20 test images, PGD-2-1, seeds 0"
    text = Path("out/comparison.md").read_text()
    assert text.splitlines()[0] == title and f"<h1>{title}</h1>" in Path("out/report.html").read_text()
    assert "The networks differ: F/batch counts passes of each method's own network." in text
    # A pass costs the same with another non-linearity, so that F is one unit.
    same = dry(capsys, *DIGITS, "standard,standard(activation=silu)", "--seeds", "1", "--epochs", "10", "--cost", "6F")
    assert same[0][1:] == same[1][1:]


def test_one_network_is_named_without_the_methods(done: Path) -> None:
    text = (done / "comparison.md").read_text()
    assert text.startswith("digits, linf, eps 0.2, small-cnn: 20 test images") and "networks differ" not in text


DIGITS = ["--data", "digits", "--methods"]
#: Floating-point operations of its three convolutions and of its last layer on a digit, two for each product.
SMALL_CNN = 2 * (9 * 1 * 16 * 64 + 9 * 16 * 32 * 16 + 9 * 32 * 64 * 4 + 64 * 4 * 10)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Give the methods to compare"),
        ([*DIGITS, "fast-at,fast-bta"], "`fast-bat`"),
        ([*DIGITS, "fast-at,fast-at"], "--methods contains `fast-at` twice"),
        ([*DIGITS, "fast-bat(ig_weight)"], "`methods` must be a name, or a name with options such as"),
        ([*DIGITS, "fast-bat(ig_weight=0"], "`methods` must be a name, or a name with options such as"),
        ([*DIGITS, "fast-at(ig_weight=0)"], "method 'fast-at' has no option `ig_weight` (but fast-bat has)"),
        ([*DIGITS, "fast-at(lr=fast)"], "`lr` must be"),
        ([*DIGITS, "fast-at(seed=3)"], "sets a seed"),
        ([*DIGITS, "fast-at(method=pgd-at)"], "sets another method"),
        ([*DIGITS, "missing.yaml"], "There is no configuration file `missing.yaml`"),
        ([*DIGITS, "fast-at", "--seeds", "0"], "`seeds` must be a whole number of at least 1"),
        ([*DIGITS, "fast-at", "--cost", "4F"], "the 4.94 F that fast-at, the cheapest method, spends"),
        ([*DIGITS, "fast-at", "--cost", "7G"], "`cost` must be a number of forward passes a batch, such as 7F"),
        (
            [*DIGITS, "fast-at,fast-at(model=preact-resnet-18, base_width=4)", "--cost", "9F"],
            f"a pass on one image are {SMALL_CNN:,} on small-cnn (fast-at), ",
        ),
        ([*DIGITS, "standard,fast-bat", "--cost", "3F", "--epochs", "1"], "fast-bat would get 0.26 epochs"),
        ([*DIGITS, "fast-at", "--baseline", "fast-bat"], "Unknown baseline `fast-bat`"),
        ([*DIGITS, "fast-at", "--attacks", ","], "--attacks names no attack"),
        ([*DIGITS, "fast-at", "--attacks", "pgd,autoatack"], "`autoattack`"),
        ([*DIGITS, "fast-at", "--method", "fast-at"], "`--methods`"),
        ([*DIGITS, "fast-at", "--step", "0.1"], "Unknown argument of `adv-train compare` `--step`"),
        (["--methods", "fast-at"], "The configuration has no data"),
        (["--methods", "digits-fast-at,cifar10-8-fast-at"], "differ in data: digits for digits-fast-at, cifar10 for"),
        ([*DIGITS, "fast-at,pgd-at(eps=8/255)"], "differ in eps: 0.2 for fast-at, 8/255 for pgd-at(eps=8/255)"),
        ([*DIGITS, "fast-at,pgd-at(norm=l2)"], "differ in norm: linf for fast-at, l2 for pgd-at(norm=l2)"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare(Path("out"), *words, by=nowhere) == 2
    said = capsys.readouterr()
    assert told in said.err and said.err.count("\n") == 1 and said.out == "" and not Path("out").exists()


def test_a_folder_with_another_comparison_is_left_as_it_is(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "comparison.json").read_bytes()
    assert compare(done, *WORDS, "--lr", "0.05", by=nowhere) == 2
    assert "differs in lr (0.05, not 0.1)" in capsys.readouterr().err
    assert (done / "comparison.json").read_bytes() == before


@pytest.mark.parametrize("command", [["compare", *DIGITS, "fast-at"], ["table", "table-1", "--scale", "smoke"]])
def test_a_folder_that_cannot_be_made_is_reported_before_the_first_run(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with work(nowhere):
        assert main([*command, "--out", str(tmp_path / "file" / "out")]) == 2
    said = capsys.readouterr().err
    assert "Cannot make the folder" in said and said.count("\n") == 1

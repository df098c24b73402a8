"""`adv-train doctor` on runs and weights: the table, the file, the exit status, and what their records tell."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import adv_train
from adv_train import evaluation
from adv_train.cli import main
from adv_train.doctor import CHECKS, patient_of_run
from adv_train.doctor.examine import examine
from adv_train.doctor.remedy import evaluate_again
from adv_train.evaluation import Evaluation, Outcome, wilson
from adv_train.loading import load_model
from adv_train.threat import Threat
from tests.applications.ill_models import Noise

FIT: dict[str, Any] = {"data": "digits", "model": "small-cnn", "eps": 0.15, "epochs": 4, "device": "cpu"}
EVAL = ["--attacks", "pgd", "--pgd-steps", "3", "--pgd-restarts", "1", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    for method in ("standard", "fast-at", "fast-bat"):
        adv_train.fit(out=folder / method, method=method, progress=False, **FIT)
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "fast-at", "run")
    return "run"


def examined(words: Sequence[str], folder: str = "run") -> tuple[int, dict[str, Any]]:
    status = main(["doctor", *words, "--device", "cpu", "--quiet"])
    found: dict[str, Any] = json.loads((Path(folder) / "doctor.json").read_text())
    return status, found


@pytest.mark.parametrize("method", ["standard", "fast-at", "fast-bat"])
def test_a_trained_run_that_is_judged_as_it_was_trained_is_healthy(
    runs: Path, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / method
    shutil.copytree(runs / method, folder)
    assert main(["eval", str(folder), *EVAL]) == 0
    capsys.readouterr()
    status, found = examined([str(folder)], str(folder))
    said = capsys.readouterr().out
    assert (status, found["healthy"]) == (0, True), said
    assert list(found["checks"]) == CHECKS.names() and all(f"| {name} " in said for name in CHECKS.names())
    left = {name for name, check in found["checks"].items() if check["verdict"] == "not checked"}
    # Standard training leaves PGD nothing to overlook where it breaks every image.
    assert left <= {"attack-records", *(["overfitting", "one-step", "random-search", "smoothing"] * (method[0] == "s"))}
    assert (found["checkpoint"], found["n"], found["eps"]) == ("best.pt", 300, 0.15)


def test_a_part_of_the_test_set_is_told_with_its_interval_and_the_command_for_all(run: str) -> None:
    assert main(["eval", run, *EVAL, "--limit", "50"]) == 0
    status, found = examined([run, "--only", "subset,trained-budget"])
    seen = found["checks"]["subset"]
    record = json.loads(Path(run, "eval.json").read_text())
    low, high = wilson(round(record["ra_pgd"] * 50), 50)
    assert (status, seen["verdict"], found["healthy"]) == (1, "doubtful", False)
    assert "50 of 360" in seen["seen"] and f"[{low:.1%}, {high:.1%}]" in seen["seen"]
    command = "adv-train eval run --norm linf --eps 0.15 --attacks 'pgd(steps=3, restarts=1)'"
    assert seen["remedy"].endswith(command)
    # The command of the remedy is the cure.
    assert main([*shlex.split(command)[1:], "--device", "cpu", "--quiet"]) == 0
    status, found = examined([run, "--only", "subset,trained-budget"])
    assert (status, found["checks"]["subset"]["verdict"]) == (0, "well")


def test_the_remedy_evaluates_the_checkpoint_that_was_examined(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = str(shutil.copytree(runs / "fast-at", "my run"))
    last = torch.load(f"{out}/last.pt", weights_only=False)
    attacks = "pgd(steps=2, restarts=1, step=0.05), pgd-targeted(targets=none, steps=1)"
    words = ["--checkpoint", "last", "--device", "cpu", "--quiet"]
    assert main(["eval", out, *words, "--attacks", attacks, "--limit", "30"]) == 0
    _, found = examined([out, "--checkpoint", "last", "--only", "subset,trained-budget"], out)
    remedy = found["checks"]["subset"]["remedy"]
    command = remedy.partition(": ")[2]
    asked = shlex.split(command)
    assert asked[:5] == ["adv-train", "eval", "my run", "--checkpoint", "last"]
    assert main([*asked[1:], "--device", "cpu", "--quiet"]) == 0
    (whole,) = [record for record in evaluation.read_all(Path(out)) if record.n == record.of]
    assert whole.about["checkpoint"] == "last.pt" and whole.about["epoch"] == last["epoch"]
    (part,) = [record for record in evaluation.read_all(Path(out)) if record.n == 30]
    assert {name: each.settings for name, each in whole.attacks.items()} == {
        name: each.settings for name, each in part.attacks.items()
    }
    assert main(["eval", out, *words, "--eps", "0.1", "--attacks", "pgd(steps=1, restarts=1)"]) == 0
    for path in (Path(out) / "evaluations").glob("*-0.15-*"):
        path.unlink()
    _, found = examined([out, "--checkpoint", "last", "--only", "trained-budget"], out)
    assert found["checks"]["trained-budget"]["remedy"].endswith(
        "adv-train eval 'my run' --checkpoint last --norm linf --eps 0.15"
    )


def test_the_remedy_names_every_recorded_attack_with_its_options(runs: Path) -> None:
    threat = Threat("linf", 8 / 255)
    robust = np.ones(9, bool)
    attacks = {
        "pgd": {"steps": 50, "restarts": 10, "loss": "cross-entropy", "step": 2 / 255},
        "pgd-targeted": {"targets": "all", "steps": 50, "restarts": 1, "loss": "margin", "step": 0.5},
        "square": {"queries": 7, "version": "standard"},
        "transfer": {"source": "runs/b", "source_weights": "0", "steps": 50, "restarts": 1, "step": 2 / 255},
        "mine": {"power": 2},
    }
    recorded = {name: Outcome(robust, None, settings) for name, settings in attacks.items()}
    patient = replace(patient_of_run(runs / "fast-at", limit=20, device="cpu"), judge="adv-train eval run")
    written = "pgd,pgd-targeted(targets=none, step=0.5),square(queries=7),transfer(source=runs/b),mine"
    assert evaluate_again(patient, threat, recorded) == (
        f"adv-train eval run --norm linf --eps 8/255 --attacks '{written}'"
    )
    assert evaluate_again(patient, threat) == "adv-train eval run --norm linf --eps 8/255"


@pytest.mark.parametrize(("flags", "swapped"), [(["--eps", "0.1"], False), (["--norm", "l2", "--eps", "0.15"], True)])
def test_a_run_without_a_record_at_its_own_budget_is_told(run: str, flags: list[str], swapped: bool) -> None:
    assert examined([run, "--only", "trained-budget"])[1]["checks"]["trained-budget"]["verdict"] == "not checked"
    assert main(["eval", run, *EVAL, *flags]) == 0
    status, found = examined([run, "--only", "trained-budget"])
    seen = found["checks"]["trained-budget"]
    assert (status, seen["verdict"], seen["figures"]["norms_swapped"]) == (1, "doubtful", swapped)
    assert "adv-train eval run --norm linf --eps 0.15" in seen["remedy"]
    assert main(["eval", run, *EVAL]) == 0
    assert examined([run, "--only", "trained-budget"])[0] == 0


def record(robust: dict[str, int], n: int = 400, eps: float = 0.15, **settings: Any) -> Evaluation:
    """Make a record in which each attack leaves so many of n images, 360 of which are right."""
    attacks = {name: Outcome(np.arange(n) < left, None, settings) for name, left in robust.items()}
    return Evaluation(Threat("linf", eps), 0, np.arange(n) < 360, attacks, of=n)


@pytest.mark.parametrize(
    ("robust", "ill"),
    [
        ({"pgd": 200, "square": 195}, False),
        ({"pgd": 200, "square": 150}, True),
        ({"pgd": 200, "transfer": 150}, True),
        ({"pgd": 200, "autoattack": 180}, False),
        ({"pgd": 87, "autoattack": 50}, False),  # 21.83 % and 12.49 %, a published cell
        ({"pgd": 200, "autoattack": 20}, True),
        ({"pgd": 4, "square": 1}, False),
    ],
)
def test_records_in_which_pgd_is_the_weaker_attack_are_found(runs: Path, robust: dict[str, int], ill: bool) -> None:
    patient = replace(patient_of_run(runs / "fast-at", limit=20, device="cpu"), records=[record(robust)])
    assert examine(patient, ["attack-records"]).healthy is not ill


@pytest.mark.parametrize(("steps", "verdict"), [(2, "doubtful"), (19, "doubtful"), (20, "ill"), (50, "ill")])
def test_a_short_pgd_is_doubtful_and_no_sign_of_masked_gradients(runs: Path, steps: int, verdict: str) -> None:
    patient = patient_of_run(runs / "fast-at", limit=20, device="cpu")
    short = record({"pgd": 300, "square": 150}, steps=steps)
    found = examine(replace(patient, records=[short]), ["attack-records"]).findings["attack-records"]
    assert found.verdict == verdict
    assert ("masked" in found.remedy) is (verdict == "ill") and ("--pgd-steps 50" in found.remedy) is (steps < 20)
    # The remedy is a cure, although the old record stays; a longer PGD that is as weak is another matter.
    for left, cured in ((0, "well"), (152, "well"), (300, "ill")):
        longer = record({"pgd": left, "square": 150}, steps=50)
        found = examine(replace(patient, records=[short, longer]), ["attack-records"]).findings["attack-records"]
        assert found.verdict == (cured if steps < 20 else "ill")
    # At another budget nothing is known yet.
    other = record({"pgd": 152, "square": 150}, eps=0.1, steps=50)
    found = examine(replace(patient, records=[short, other]), ["attack-records"]).findings["attack-records"]
    assert found.verdict == verdict


def test_a_healthy_model_whose_record_has_two_steps_of_pgd_is_not_ill(run: str) -> None:
    attacks = "pgd(steps=2,restarts=1),square(queries=300)"
    assert main(["eval", run, "--attacks", attacks, "--eps", "0.3", "--device", "cpu", "--quiet"]) == 0
    found = examined([run, "--only", "attack-records"])[1]["checks"]["attack-records"]
    assert found["verdict"] == "doubtful", found
    words = found["remedy"].partition("adv-train ")[2].replace('"', "").replace("square", "square(queries=300)").split()
    assert main([*words, "--pgd-restarts", "1", "--device", "cpu", "--quiet"]) == 0
    assert examined([run, "--only", "attack-records"])[1]["checks"]["attack-records"]["verdict"] == "well"


def test_a_record_more_robust_than_accurate_is_found(runs: Path) -> None:
    patient = patient_of_run(runs / "fast-at", limit=20, device="cpu")
    for left, verdict in ((360, "well"), (361, "ill")):
        seen = examine(replace(patient, records=[record({"pgd": left})]), ["robust-above-clean"])
        assert seen.findings["robust-above-clean"].verdict == verdict


@pytest.mark.parametrize(("left", "verdict"), [(361, "well"), (366, "well"), (390, "ill")])
def test_an_attack_with_a_clean_pass_of_its_own_may_be_above_it_by_chance(runs: Path, left: int, verdict: str) -> None:
    patient = patient_of_run(runs / "fast-at", limit=20, device="cpu")
    randomised = replace(patient, model=nn.Sequential(patient.model, Noise()))
    for examined_patient, judged in (
        (patient, record({"autoattack-rand": left})),
        (patient, record({"pgd": left}, eps=0.0)),
        (randomised, record({"pgd": left})),
    ):
        seen = examine(replace(examined_patient, records=[judged]), ["robust-above-clean"])
        assert seen.findings["robust-above-clean"].verdict == verdict, judged.attacks


def test_the_history_of_a_run_that_overfitted_is_read(run: str) -> None:
    assert examined([run, "--only", "overfitting"])[0] == 0
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    for last, verdict in ((0.55, "doubtful"), (0.02, "ill")):
        changed = [line | {"val_sa": 0.9, "val_ra": 0.8, "val_fgsm": 0.85} for line in lines]
        changed[-1] |= {"val_ra": last, "val_fgsm": last}
        Path(run, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
        status, found = examined([run, "--only", "overfitting"])
        assert (status, found["checks"]["overfitting"]["verdict"]) == (1, verdict)
        assert "80.0% after epoch" in found["checks"]["overfitting"]["seen"]


@pytest.mark.parametrize(
    ("best", "last", "n", "verdict"),
    [
        (0.08, 0.0, 500, "ill"),
        (0.08, 0.055, 5000, "doubtful"),
        (0.08, 0.055, 500, "well"),
        (0.08, 0.062, 5000, "well"),
        (0.5, 0.42, 5000, "well"),  # usual for long training
        (0.5, 0.39, 5000, "doubtful"),
        (0.5, 0.39, 100, "well"),
    ],
)
def test_a_last_epoch_that_is_worse_by_more_than_chance_is_told(
    runs: Path, best: float, last: float, n: int, verdict: str
) -> None:
    known = {"val_sa": 0.6, "val_images": n}
    history = [{"epoch": 1, "val_ra": best, **known}, {"epoch": 2, "val_ra": last, **known}]
    patient = replace(patient_of_run(runs / "fast-at", limit=20, device="cpu"), history=history)
    assert examine(patient, ["overfitting"]).findings["overfitting"].verdict == verdict


def test_python_and_command_find_the_same(run: str) -> None:
    words = [run, "--only", "one-step,random-search", "--eps", "0.2", "--limit", "100", "--seed", "2"]
    _, found = examined(words)
    again = adv_train.doctor(run, eps=0.2, only=["one-step", "random-search"], limit=100, seed=2)
    assert json.loads(json.dumps(again.summary())) == found


def test_weights_from_elsewhere_are_examined_with_the_flags_of_eval(run: str) -> None:
    torch.save(load_model(run).state_dict(), "weights.pt")
    words = ["--checkpoint-file", "weights.pt", "--model", "small-cnn", "--data", "digits", "--eps", "0.15"]
    assert main(["eval", *words, *EVAL, "--limit", "30"]) == 0
    status, found = examined([*words, "--only", "subset,gradients,budget"], "runs/weights-eval")
    assert status == 1 and [f["verdict"] for f in found["checks"].values()] == ["well", "well", "doubtful"]
    remedy = found["checks"]["subset"]["remedy"]
    command = "adv-train eval --checkpoint-file weights.pt --model small-cnn --data digits --out runs/weights-eval"
    assert f"{command} --norm linf" in remedy
    # A record of other weights in the same folder tells nothing of these.
    torch.save(
        {
            name: value + 0 if value.dtype == torch.int64 else value * 0.9
            for name, value in torch.load("weights.pt").items()
        },
        "weights.pt",
    )
    _, found = examined([*words, "--only", "subset"], "runs/weights-eval")
    assert found["checks"]["subset"]["verdict"] == "not checked"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["doctor"], "also --model, --data, --eps (`adv-train doctor --help`"),
        (["doctor", "run", "--model", "small-cnn"], "--model is for a model that was not trained here"),
        (["doctor", "run", "--only", "leek"], "Did you mean `leak`"),
        (["doctor", "run", "--norm", "l2"], "give --eps NUMBER"),
        (["doctor", "nowhere"], "not a run folder"),
        (["doctor", "run", "--eps", "-1"], "eps"),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_one_line(
    run: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert told in said.err and said.err.count("\n") == 1 and said.out == "" and not Path(run, "doctor.json").exists()


def test_a_bar_is_shown_and_the_checks_are_listed(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", run, "--only", "budget,collapse", "--progress", "--device", "cpu"]) == 0
    assert "doctor" in capsys.readouterr().err
    assert main(["list", "checks"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said and CHECKS.describe(name) in said for name in CHECKS.names())


def test_a_budget_in_pixels_is_told_and_the_rest_is_not_checked(run: str) -> None:
    status, found = examined([run, "--eps", "8", "--only", "budget,large-budget"])
    assert status == 1 and found["eps"] == 8
    assert [check["verdict"] for check in found["checks"].values()] == ["ill", "not checked"]
    assert evaluation.records_of(Path(run)) == []

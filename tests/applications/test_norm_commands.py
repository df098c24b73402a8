"""`--norm` from the command line to the record: training, validation, evaluation, records and reports in l2 and l1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack

from adv_train import evaluation
from adv_train.attacks import PGD, pgd
from adv_train.cli import main
from adv_train.comparison.cell import Cell, Judgement
from adv_train.config import resolve
from adv_train.data import load
from adv_train.errors import UserError
from adv_train.loading import load_model
from adv_train.records import RunFolder
from adv_train.threat import Threat
from tests.applications.test_bad_input import refusal

FIT = ["fit", "--data", "digits", "--method", "fast-at", "--device", "cpu", "--quiet"]
QUICK = ["--pgd-steps", "3", "--pgd-restarts", "1", "--device", "cpu", "--quiet"]
BUDGETS = {"l2": 0.8, "l1": 2.0}


@pytest.fixture(autouse=True)
def brief_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the first part of AutoAttack only: what the parts find is tested elsewhere."""
    standard = AutoAttack._set_version

    def first(attack: AutoAttack, version: str) -> None:
        standard(attack, version)
        attack.attacks_to_run, attack.apgd.n_restarts = ["apgd-ce"], 1

    monkeypatch.setattr(AutoAttack, "_set_version", first)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def content(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "eval.json").read_text())
    return found


def test_lengths_of_a_preset_or_a_file_do_not_outlive_their_norm() -> None:
    preset, file = "cifar10-8-pgd-at-benchmark-10", Path("mine.yaml")
    assert resolve({}, preset=preset).method.step == 2 / 255  # type: ignore[attr-defined]
    for norm, eps in {"l2": 128 / 255, "l1": 12}.items():
        config: Any = resolve({"norm": norm}, preset=preset)
        assert (config.threat.eps, config.method.step, config.method.steps) == (eps, None, 10)
        config = resolve({"norm": norm, "step": 0.1}, preset=preset)
        assert (config.threat.eps, config.method.step) == (eps, 0.1)
    file.write_text("norm: l2\neps: 0.5\nstep: 0.3\n")
    for flags, step in (({}, 0.3), ({"norm": "l2"}, 0.3), ({"norm": "linf"}, None), ({"norm": "l1", "step": 2}, 2)):
        assert resolve(flags, preset=preset, file=file).method.step == step  # type: ignore[attr-defined]
    config = resolve({"data": "digits", "method": "pgd-at", "norm": "l2"})
    assert config.method.step == config.threat.eps == 0.8  # that of the recipe follows the radius


@pytest.mark.parametrize("norm", list(BUDGETS))
def test_a_run_is_trained_validated_and_judged_in_its_norm(norm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its radius is that of the recipe; other norms stand beside it, and the run's own comes first."""
    eps = BUDGETS[norm]
    assert main([*FIT, "--norm", norm, "--epochs", "2", "--train-limit", "200"]) == 0
    run = f"runs/digits-fast-at-{norm}-eps{eps:.3g}-seed0"
    config = RunFolder(Path(run)).config()
    assert config.threat == Threat(norm, eps)  # type: ignore[arg-type]

    model, validation = load_model(run, checkpoint="last"), load("digits", root="").validation
    threat: dict[str, Any] = {"eps": eps, "norm": norm, "steps": 10, "restarts": 1}
    generator = torch.Generator().manual_seed(0)
    survived, _ = pgd(model, validation.images, validation.labels, generator=generator, **threat)
    last = RunFolder(Path(run)).metrics()[-1]
    assert last["val_ra"] == float(survived.double().mean())

    capsys.readouterr()
    assert main(["eval", run, *QUICK, "--limit", "10", "--report"]) == 0
    assert f"10 test images, best.pt, {norm}, ε = {eps:g}; written" in capsys.readouterr().out
    found = content(run)
    assert (found["norm"], found["eps"], found["attacks"]["autoattack"]["norm"]) == (norm, eps, norm.upper())
    other = {"l2": "l1", "l1": "l2"}[norm]
    for words in (["--eps", "0.05"], ["--norm", other, "--eps", str(eps)]):
        assert main(["eval", run, *QUICK, "--no-autoattack", "--limit", "360", *words, "--report"]) == 0
    found = content(run)
    assert (found["norm"], found["eps"], found["n"]) == (norm, eps, 10)  # the threat of training, though of few images
    told = {(record["norm"], record["eps"]) for record in found["records"]}
    assert told == {(norm, eps), (norm, 0.05), (other, eps)}
    records = evaluation.read_all(Path(run))
    assert evaluation.headline(records, Threat(other, eps)).threat.norm == other  # type: ignore[arg-type]
    page = (Path(run) / "report.html").read_text()
    assert (
        f"10 images, {norm}, ε = {eps:g}" in page and f">{eps:g} in {norm}<" in page and f">{eps:g} in {other}<" in page
    )


def test_a_run_in_l2_repeats_itself_bit_for_bit() -> None:
    words = [*FIT, "--norm", "l2", "--eps", "128/255", "--train-limit", "100", "--method", "fast-bat"]
    assert main([*words, "--epochs", "2", "--out", "whole"]) == 0
    assert main([*words, "--epochs", "2", "--out", "again"]) == 0
    one, other = (load_model(name, checkpoint="last").state_dict() for name in ("whole", "again"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert RunFolder(Path("whole")).config().threat.eps == 128 / 255
    assert "eps: 128/255" in Path("whole/config.yaml").read_text()


@pytest.mark.parametrize("method", ["standard", "pgd-at", "n-fgsm", "fast-at-ga", "fast-bat"])
@pytest.mark.parametrize("norm", list(BUDGETS))
def test_every_method_of_the_norm_trains(method: str, norm: str) -> None:
    assert main([*FIT, "--method", method, "--norm", norm, "--epochs", "1", "--train-limit", "64", "--out", "run"]) == 0


def test_models_from_elsewhere_are_judged_in_any_norm() -> None:
    Path("own.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    words = ["eval", "--model", "own:net", "--data", "digits", "--no-autoattack", "--limit", "20", *QUICK]
    assert main([*words, "--norm", "l1", "--eps", "2", "--out", "judged"]) == 0
    assert (content("judged")["norm"], content("judged")["eps"]) == ("l1", 2.0)
    assert main([*words, "--eps", "0.1", "--out", "judged"]) == 0
    assert {record["norm"] for record in content("judged")["records"]} == {"l1", "linf"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--norm", "l3"], "Unknown norm `l3`"),
        (["--norm", "L2"], "Unknown norm `L2`. Did you mean `l2`"),
        (["--norm", "l2", "--eps", "128"], "`eps` must not exceed 8 in l2"),
        (["--norm", "l1", "--eps", "65"], "`eps` must not exceed 64 in l1"),
        (["--norm", "l1", "--eps", "-1"], "`eps` must be a number of at least 0"),
        (["--norm", "l2", "--eps", "0"], "`eps` must be above 0 for fast-at"),
    ],
)
def test_a_threat_that_cannot_be_trained_against_is_named(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refusal(capsys, *FIT, *words, "--out", "run")
    assert not Path("run").exists()


def test_a_norm_that_cannot_be_judged_in_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--epochs", "1", "--train-limit", "20", "--out", "run"]) == 0
    for words, told in (
        (["--norm", "l2"], "The run was trained in linf: give --eps NUMBER to evaluate it in l2."),
        (["--norm", "l3", "--eps", "1"], "Unknown norm `l3`"),
        (["--norm", "l2", "--eps", "9"], "`eps` must not exceed 8 in l2"),
        (["--eps", "2"], "`eps` must not exceed the range of the images"),
    ):
        assert told in refusal(capsys, "eval", "run", *words, "--no-autoattack")
    assert not Path("run/eval.json").exists()
    again = refusal(capsys, "fit", "--norm", "l2", "--out", "run")
    assert "Give the radius of the attack: --eps NUMBER in l2." in again
    assert "norm (l2, not linf)" in refusal(capsys, "fit", "--norm", "l2", "--eps", "1", "--out", "run")


# --- which radius wins ------------------------------------------------------------------------------------------------


def threat(flags: dict[str, Any], **layers: Any) -> Threat:
    return resolve({"device": "cpu", **flags}, **layers).threat


def test_another_norm_leaves_the_radius_of_the_one_before_behind(tmp_path: Path) -> None:
    cifar = {"data": "cifar10", "method": "fast-at"}
    assert threat(cifar) == Threat("linf", 8 / 255)
    assert threat({**cifar, "norm": "l2"}) == Threat("l2", 128 / 255)
    assert threat({**cifar, "norm": "l1"}) == Threat("l1", 12.0)
    assert threat({**cifar, "norm": "l1", "eps": "3"}) == Threat("l1", 3.0)
    preset = "cifar10-16-fast-bat"
    assert threat({}, preset=preset) == Threat("linf", 16 / 255)
    assert threat({"norm": "linf"}, preset=preset) == Threat("linf", 16 / 255)
    assert threat({"norm": "l2"}, preset=preset) == Threat("l2", 128 / 255)
    file = tmp_path / "mine.yaml"
    file.write_text("threat: {norm: l2, eps: 0.25}\n")
    assert threat(cifar, file=file) == Threat("l2", 0.25)
    assert threat({}, preset=preset, file=file) == Threat("l2", 0.25)
    assert threat({"norm": "linf"}, preset=preset, file=file) == Threat("linf", 8 / 255)
    assert threat({**cifar, "norm": "l2", "eps": 1}, file=file) == Threat("l2", 1.0)
    file.write_text("eps: 4/255\n")
    assert threat({**cifar, "norm": "l2"}, file=file) == Threat("l2", 128 / 255)


def test_a_recipe_without_a_radius_in_the_norm_asks_for_one() -> None:
    with pytest.raises(UserError, match="The recipe of imagefolder has no radius in l2: give --eps NUMBER"):
        threat({"data": "imagefolder:x", "method": "fast-at", "norm": "l2"})
    assert threat({"data": "imagefolder:x", "method": "fast-at", "norm": "l2", "eps": 3}) == Threat("l2", 3.0)


def test_an_option_that_follows_the_radius_follows_that_of_the_norm() -> None:
    config = resolve({"data": "digits", "method": "pgd-at", "norm": "l1", "device": "cpu"})
    assert config.to_mapping()["method"]["step"] == BUDGETS["l1"]


def test_a_cell_that_was_judged_in_another_norm_is_not_done() -> None:
    assert main([*FIT, "--norm", "l2", "--eps", "0.2", "--epochs", "1", "--train-limit", "20", "--out", "run"]) == 0
    cell = Cell("a", Path("run"), RunFolder(Path("run")).config(), (Judgement("best", (PGD(),), 10),))
    judge = ["eval", "run", "--no-autoattack", "--limit", "10", "--device", "cpu", "--quiet"]
    assert main([*judge, "--norm", "linf", "--eps", "0.2"]) == 0
    assert not cell.is_done()
    assert main(judge) == 0
    assert cell.is_done()

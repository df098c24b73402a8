"""`adv-train bench` and `adv-train list` from the words to what is printed, and the defaults of every command."""

from __future__ import annotations

import inspect
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import adv_train
from adv_train import attacks, data, models
from adv_train.attacks import PGD
from adv_train.bench import timing
from adv_train.bench.run import cases
from adv_train.cli import compare, evaluation, main, parser
from adv_train.config import PRESETS
from adv_train.evaluate import evaluate_model
from adv_train.methods import METHODS
from adv_train.threat import Threat

SMALL = ["--model", "small-cnn", "--image-size", "8", "--batch-size", "3", "--repeats", "2", "--device", "cpu"]


def test_the_benchmark_prints_and_writes_the_cost_of_every_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *SMALL, "--out", "figures/bench.json"]) == 0
    said = capsys.readouterr().out
    tables = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("|")]
    head, _, *lines = tables[: len(tables) // 2]
    found = json.loads(Path("figures/bench.json").read_text())
    assert [cell.strip() for cell in head][:4] == ["method", "forwards a step", "ms a step", "images/s"]
    assert [line[0].strip() for line in lines] == [name for name, _, _ in cases()]
    assert found["settings"] | {"eps": 8 / 255, "batch_size": 3, "image_size": 8, "repeats": 2} == found["settings"]
    for line, row in zip(lines, found["rows"], strict=True):
        assert row["images_per_second"] == pytest.approx(3 / (row["milliseconds"] / 1e3))
        assert line[2].strip() == f"{row['milliseconds']:.1f}" and line[1].strip() == f"{row['forwards']:.2f}"
    assert found["rows"][0]["over_standard"] == 1.0
    by_hand = {row["name"]: row["over_by_hand"] is not None for row in found["rows"]}
    assert by_hand["fast-bat"] and by_hand["n-fgsm"] and not by_hand["fgsm-pgi"]
    assert all(by_hand[name] for name in by_hand if name.startswith("fast-bat, "))
    # The default validation: a clean pass, 5 PGD steps and one FGSM step on 500 images, two gradients on 256.
    first, *_, last = found["rows"]
    assert first["validation_seconds"] == last["validation_seconds"] > 0
    assert "An epoch of 50,000 images, estimated; validation on 500 images with 5 PGD steps:" in said
    ahead, _, *epochs = tables[len(tables) // 2 :]
    assert [cell.strip() for cell in ahead] == ["method", "s/epoch", "with validation", "over fast-at"]
    for line, row in zip(epochs, found["rows"], strict=True):
        assert line[0].strip() == row["name"] and line[1].strip() == f"{row['epoch_seconds']:.2f}"
        both = row["epoch_seconds"] + row["validation_seconds"]
        assert line[2].strip() == f"{both:.2f}" and row["epoch_seconds"] > 50_000 / 3 * row["milliseconds"] / 1e3
    assert (found["settings"]["epoch_images"], found["published"]) == (50_000, {})


@pytest.mark.parametrize(("missing", "named"), [("tyro", "tyro"), ("sklearn.datasets", "sklearn")])
def test_a_missing_package_of_ours_is_named_and_how_to_install_it(
    missing: str, named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parser, "import_module", lambda _: import_module(missing))
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["list"]) == 2
    message = f"the package {named} is missing; install it with: pip install 'torch-blo[adv-train]'"
    assert capsys.readouterr().err == f"adv-train: error: {message}\n"


def test_a_missing_package_that_is_not_ours_is_not_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "import_module", lambda _: import_module("nobody_has_this"))
    with pytest.raises(ModuleNotFoundError, match="nobody_has_this"):
        main(["list"])


def test_without_a_file_the_benchmark_writes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *SMALL[:6], "--repeats", "1", "--device", "cpu", "--quiet"]) == 0
    assert not list(tmp_path.iterdir()) and "Written" not in capsys.readouterr().out


def test_functions_take_turns_and_the_first_round_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def taking(seconds: float) -> None:
        order.append(seconds)
        clock[0] += seconds * (10 if len(order) <= 2 else 1)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    calls = [lambda: taking(1.0), lambda: taking(3.0)]
    found = timing.interleaved(calls, repeats=2, device=torch.device("cpu"), progress=False)
    assert found == [[1.0, 1.0], [3.0, 3.0]] and order == [3.0, 1.0, 1.0, 3.0, 3.0, 1.0]
    assert timing.ratio([2.0, 8.0, 9.0], [1.0, 2.0, 1.0]) == 4.0


def test_everything_that_can_be_named_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out.splitlines()
    titles = [line.removesuffix(":") for line in said if not line.startswith(" ")]
    assert titles == [
        "methods",
        "norms",
        "objectives",
        "presets",
        "models",
        "data",
        "optimizers",
        "observers",
        "attacks",
        "checks",
        "forms",
    ]
    listed = {line.split()[0] for line in said if line.startswith(" ")}
    assert listed >= {*METHODS.names(), *PRESETS, *models.MODELS.names(), *data.names(), *attacks.ATTACKS.names()}
    assert "torchvision:NETWORK" in listed
    (line,) = [line for line in said if line.split()[0] == "fast-at-ga"]
    assert "Options: start, attack_mode, attack_loss, train_loss, step, coefficient" in line


def test_one_section_is_listed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attacks"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "attacks:" and {line.split()[0] for line in others} == set(attacks.ATTACKS.names())
    assert main(["list", "atacks"]) == 2
    assert "`attacks`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--data", "digits", "--method", "fast-at", "--epoch", "1"],
        ["fit", "--data", "digits", "--method", "fast-at", "--epoch=1"],
        ["eval", "run", "--rep"],
        ["eval", "run", "--no-auto"],
        ["bench", "--repeat", "1"],
        ["demo", "--lim", "3"],
    ],
)
def test_an_abbreviated_flag_is_refused_with_its_whole_name(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr()
    flag = next(word for word in words if word.startswith("--") and word not in ("--data", "--method"))
    assert f"`{flag.partition('=')[0]}`" in said.err and said.out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", adv_train.__all__)
def test_every_public_name_is_imported_when_it_is_asked_for(name: str) -> None:
    found = getattr(adv_train, name)  # `evaluate` may be its module, which can be called as well
    assert callable(found) and found.__name__.removeprefix("adv_train.") == name


def test_the_judge_is_pgd_50_10_wherever_nobody_says_otherwise() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    by_name = adv_train.evaluate(model, x, y, Threat("linf", 0.1), attacks=["pgd"])
    in_short = evaluate_model(model, x, y, eps=0.1, autoattack=False)
    words = evaluation.read(["run"])
    defaults = {name: value.default for name, value in inspect.signature(attacks.pgd).parameters.items()}
    for settings in (by_name.attacks["pgd"].settings, in_short.attacks["pgd"].settings, defaults, vars(PGD())):
        assert (settings["steps"], settings["restarts"]) == (50, 10)
    assert (words.pgd_steps, words.pgd_restarts, words.attacks) == (50, 10, "pgd,autoattack")
    compared, _ = compare.read(["--methods", "fast-at"])
    assert (compared.pgd_steps, compared.pgd_restarts, compared.attacks) == (50, 10, "pgd")

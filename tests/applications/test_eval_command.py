"""`adv-train eval` from the words to the record: runs, moved images, and models that were not trained here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import adv_train
from adv_train import data, models, train
from adv_train.cli import main
from adv_train.errors import UserError
from adv_train.loading import load_model
from adv_train.models import load_weights
from adv_train.records import RunFolder
from adv_train.summaries import summarise
from tests.applications.test_bad_input import refusal

TRAIN = ["--method", "fast-at", "--model", "small-cnn", "--epochs", "2", "--device", "cpu", "--quiet"]
QUICK = ["--no-autoattack", "--pgd-steps", "2", "--pgd-restarts", "1", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("digits") / "run"
    scores = ({"val_sa": sa, "val_ra": 0.1, "val_top_class": 0.1} for sa in (0.3, 0.2))  # so that epoch 1 is the best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "validate", lambda _: next(scores))
        assert main(["fit", "--data", "digits", "--eps", "0.2", "--lr", "0.05", "--out", str(run), *TRAIN]) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in trained.iterdir():
        if file.is_file():
            Path("run").mkdir(exist_ok=True)
            (Path("run") / file.name).write_bytes(file.read_bytes())
    return Path("run")


def content(folder: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "eval.json").read_text())
    return found


def test_a_run_is_judged_by_both_attacks_and_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["eval", str(run), "--limit", "20", "--pgd-restarts", "2", "--device", "cpu", "--quiet", "--report"]) == 0
    )
    found, said = content(run), capsys.readouterr().out
    assert (found["n"], found["checkpoint"], found["eps"]) == (20, "best.pt", 0.2)
    assert found["attacks"]["pgd"]["steps"] == 50 and found["attacks"]["pgd"]["restarts"] == 2
    with np.load(run / "outcomes.npz") as arrays:
        test = data.load("digits", root="").test
        assert np.array_equal(np.bincount(arrays["labels"]), [2] * 10)
        for name, figure in (("clean", "sa"), ("pgd", "ra_pgd"), ("autoattack", "ra_aa")):
            assert found[figure] == arrays[name].mean()
            assert f"{100 * found[figure]:.1f} %" in said
        assert np.array_equal(arrays["clean"], arrays["predicted"] == arrays["labels"])
    assert found["ra_aa"] <= found["ra_pgd"] <= found["sa"] and len(test) == 360
    assert "20 test images, best.pt" in said and "| class |" in said
    page = (run / "report.html").read_text()
    assert "evaluated best.pt (epoch 1), 20 images" in page


def test_best_and_last_and_several_budgets_stand_side_by_side(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), *QUICK, "--checkpoint", "last"]) == 0
    (last,) = content(run)["records"]
    assert main(["eval", str(run), *QUICK]) == 0
    best = content(run)["records"][0]
    test = data.load("digits", root="").test
    for record, name, epoch in ((last, "last.pt", 2), (best, "best.pt", 1)):
        saved = torch.load(run / name, weights_only=False)
        model = models.create("small-cnn", **saved["model_arguments"], seed=0).eval()
        model.load_state_dict(saved["model"])
        assert (record["checkpoint"], record["epoch"]) == (name, epoch)
        assert record["sa"] == float((model(test.images).argmax(1) == test.labels).double().mean())
    for words in ([], ["--eps", "8/255"], ["--limit", "50"], ["--no-pgd"], ["--seed", "1"]):
        assert main(["eval", str(run), *QUICK, *words]) == 0
    found = content(run)
    assert len(found["records"]) == 6 == len(list((run / "evaluations").iterdir()))
    assert (found["checkpoint"], found["n"], found["eps"]) == ("best.pt", 360, 0.2)
    assert sorted(record["eps"] for record in found["records"])[0] == pytest.approx(8 / 255)
    assert [record["checkpoint"] for record in found["records"]].count("last.pt") == 1
    assert not (run / "report.html").exists()


def test_cost_and_implicit_share_are_means_over_the_epochs(run: Path) -> None:
    assert main(["eval", str(run), *QUICK, "--limit", "10"]) == 0
    folder = RunFolder(run)
    folder.write_timing([{"epoch": epoch, "train_seconds": taken} for epoch, taken in ((1, 1.0), (2, 2.0), (3, 6.0))])
    folder.write_metrics([{**folder.metrics()[0], "implicit_share": share} for share in (0.0, 0.1, 0.3)])
    summary = summarise(run)
    assert summary.seconds_per_epoch == 3.0 and summary.implicit_share == pytest.approx(0.2)


def test_the_table_is_alone_on_the_output_in_forms_for_programs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(run), *QUICK, "--limit", "30", "--table", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(row["SA"]) == content(run)["sa"] and row["RA-AA"] == ""


def test_images_that_moved_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (Path("photos") / name).mkdir(parents=True)
        for index in range(20):
            pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("photos") / name / f"{index}.png")
    assert main(["fit", "--data", "imagefolder:photos", "--eps", "8/255", "--lr", "0.05", "--out", "run", *TRAIN]) == 0
    assert main(["eval", "run", *QUICK]) == 0
    before = content("run")
    Path("elsewhere").mkdir()
    Path("photos").rename("elsewhere/photos")
    assert "photos" in refusal(capsys, "eval", "run", *QUICK)
    for words in (
        ["--data-root", "elsewhere"],
        ["--data-root", "elsewhere/photos"],
        ["--data", "imagefolder:elsewhere/photos"],
    ):
        assert main(["eval", "run", *QUICK, *words]) == 0
    after = content("run")
    assert len(after["records"]) == 1  # The same images and weights: the same record.
    assert {key: after[key] for key in ("sa", "ra_pgd", "images")} == {
        key: before[key] for key in ("sa", "ra_pgd", "images")
    }
    assert [row["name"] for row in after["per_class"]] == ["cat", "dog", "owl"]
    Path("elsewhere/photos/owl").rename("owl")
    assert "does not match the record of the run: 20 of 60 files" in refusal(
        capsys, "eval", "run", *QUICK, "--data-root", "elsewhere"
    )


# --- models that were not trained here -------------------------------------------------------------------------------

FACTORY = """
import torch
from torch import nn
def linear(classes, width=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(width, classes))
def many(num_classes): return linear(num_classes)
def broken(): raise ValueError("no such file")
def number(): return 3
class Net(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("nets_of_mine.py").write_text(FACTORY)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save(model.state_dict(), "weights.pt")
    return Path("weights.pt")


FOREIGN = ["--data", "digits", "--eps", "0.1", "--limit", "50", *QUICK]


@pytest.mark.parametrize("factory", ["linear", "many", "Net"])
def test_weights_of_another_project_are_judged(weights: Path, factory: str) -> None:
    words = ["eval", "--checkpoint-file", str(weights), "--model", f"nets_of_mine:{factory}", *FOREIGN]
    assert main([*words, "--report"]) == 0
    found = content("runs/weights-eval")
    assert (found["checkpoint"], found["data"], found["n"], found["eps"]) == ("weights.pt", "digits", 50, 0.1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.load_state_dict(torch.load(weights))
    with np.load("runs/weights-eval/outcomes.npz") as arrays:
        assert arrays["clean"].mean() == found["sa"]
        shown = torch.tensor(arrays["example_clean"])
        assert np.array_equal(model(shown).argmax(1).numpy(), arrays["example_before"])
    assert Path("runs/weights-eval/report.html").is_file()


@pytest.mark.parametrize(("words", "root"), [([], "data"), (["--data-root", "elsewhere"], "elsewhere")])
def test_the_data_of_foreign_weights_are_sought_where_the_flag_says(
    weights: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], root: str
) -> None:
    asked: list[str] = []
    load = data.load

    def recorded(name: str, *, root: str) -> data.Dataset:
        asked.append(root)
        return load(name, root=root)

    monkeypatch.setattr(data, "load", recorded)
    assert main(["eval", "--checkpoint-file", str(weights), "--model", "nets_of_mine:Net", *FOREIGN, *words]) == 0
    assert asked == [root]


def test_weights_of_our_own_models_are_judged_by_the_models_name(run: Path) -> None:
    torch.save({"state_dict": load_model(run).state_dict()}, "copy.pth")
    words = ["eval", "--checkpoint-file", "copy.pth", "--model", "small-cnn", "--data", "digits", "--eps", "0.2"]
    assert main([*words, *QUICK, "--out", "mine"]) == 0
    assert main(["eval", str(run), *QUICK]) == 0
    assert content("mine")["sa"] == content(run)["sa"] and content("mine")["ra_pgd"] == content(run)["ra_pgd"]
    assert content("mine")["weights"] == content(run)["weights"]


def test_a_model_may_have_options(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, digits = load_model(run), data.load("digits", root="")
    torch.save(trained.state_dict(), "w.pt")
    words = ["--checkpoint-file", "w.pt", "--data", "digits", "--eps", "0.2", *QUICK, "--out", "smooth"]
    assert main(["eval", "--model", "small-cnn(activation=silu)", *words]) == 0
    smooth = models.create("small-cnn", **digits.model_arguments(), activation="silu").eval()
    smooth.load_state_dict(trained.state_dict())
    images, labels = next(data.ordered_batches(digits.test, 360))
    accuracies = [float((model(images).argmax(1) == labels).double().mean()) for model in (smooth, trained)]
    assert content("smooth")["sa"] == accuracies[0] != accuracies[1]
    assert "no option `depth`" in refusal(capsys, "eval", "--model", "small-cnn(depth=3)", *words)


def prefixed(*prefixes: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {f"{''.join(prefixes)}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "change",
    [
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("_orig_mod.", "module."),
        prefixed("module.", "_orig_mod."),
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": prefixed("module.")(state)},
    ],
)
def test_prefixes_and_wrappers_are_taken_off(weights: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    state = torch.load(weights)
    torch.save(change(state), weights)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    load_weights(model, weights)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_part_of_the_model_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"1.weight": torch.zeros(10, 64)}, "it lacks 1.bias"),
        ({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10), "2.bias": torch.zeros(1)}, "lacks 2.bias"),
        ({"1.weight": torch.zeros(9, 64), "1.bias": torch.zeros(10)}, r"1.weight \(9, 64\) instead of \(10, 64\)"),
        ({"1.weight": torch.full((10, 64), torch.nan), "1.bias": torch.zeros(10)}, "not finite"),
        ({"1.bias": torch.zeros(10), "module.1.bias": torch.zeros(10)}, "1.bias twice"),
        ({"epoch": 3}, "holds no weights"),
        (torch.zeros(3), "holds no weights"),
        (nn.Linear(2, 2), "Nothing was loaded"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, saved: object, message: str) -> None:
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        load_weights(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Give the RUN folder"),
        (["--model", "small-cnn", *FOREIGN], "--checkpoint-file"),
        (["--checkpoint-file", "no.pt", "--model", "small-cnn", *FOREIGN], "There is no weights file `no.pt`"),
        (["--checkpoint-file", "weights.pt", "--model", "small-cn", *FOREIGN], "`small-cnn`"),
        (["--checkpoint-file", "weights.pt", "--model", "small-cnn", *FOREIGN], "do not fit the model"),
        (["--checkpoint-file", "weights.pt", "--model", "small-cnn", "--data", "digits"], "--eps"),
        (["--checkpoint-file", "nets_of_mine.py", "--model", "nets_of_mine:Net", *FOREIGN], "nets_of_mine.py"),
        (["--model", "nets_of_mine:linaer", *FOREIGN], "`linear`"),
        (["--model", "no_such_module_here:net", *FOREIGN], "no module `no_such_module_here`"),
        (["--model", "nets_of_mine:broken", *FOREIGN], "ValueError: no such file"),
        (["--model", "nets_of_mine:number", *FOREIGN], "returns int"),
        (["run", "--model", "small-cnn"], "leave out RUN"),
        (["--checkpoint", "last", "--model", "nets_of_mine:Net", *FOREIGN], "--checkpoint-file"),
        (["run", "--attacks", "pdg"], "`pgd`"),
        (["run", "--table", "latx"], "`latex`"),
    ],
)
def test_what_cannot_be_judged_is_told_in_one_line(
    weights: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refusal(capsys, "eval", *words)
    assert not Path("runs").exists()


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_file_is_loaded_as_its_folder_is(run: Path) -> None:
    for name in ("best", "last"):
        from_file, from_folder = load_model(run / f"{name}.pt"), load_model(run, checkpoint=name)
        for key, value in from_folder.state_dict().items():
            assert torch.equal(from_file.state_dict()[key], value)
    (run / "best.pt").rename("taken-home.pt")
    assert adv_train.load_model("taken-home.pt")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    with pytest.raises(UserError, match="no checkpoint"):
        load_model(run / "best.pt")

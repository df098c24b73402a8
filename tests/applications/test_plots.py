"""`adv-train plot`: the numbers of each figure against their source, the files, and what is refused."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from adv_train import data, evaluation, plots
from adv_train.cli import evaluation as eval_command
from adv_train.cli import main
from adv_train.cli import plot as plot_command
from adv_train.config import resolve
from adv_train.data.stratified import stratified_head
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation, Outcome
from adv_train.loading import load_model
from adv_train.plots import FIGURES, plot, read_runs
from adv_train.plots.style import line
from adv_train.records import RunFolder
from adv_train.threat import Threat
from tests.applications.test_bad_input import refusal

SMALL: dict[str, Any] = {"data": "digits", "model": "small-cnn", "device": "cpu", "epochs": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    runs = []
    for method in ("fast-at", "fast-bat"):
        runs.append(tmp_path_factory.mktemp("trained") / method)
        words = ["--data", "digits", "--model", "small-cnn", "--train-limit", "200", "--epochs", "2", "--eps", "0.2"]
        assert main(["fit", *words, "--method", method, "--device", "cpu", "--quiet", "--out", str(runs[-1])]) == 0
    return runs


def made(folder: Path, metrics: Sequence[dict[str, Any]] | None = None, **values: Any) -> Path:
    """Write a run folder without training: its configuration and the records of its epochs."""
    run = RunFolder(folder)
    with run.claim(resolve({**SMALL, "method": "fast-at", "eps": 0.2, **values})):
        run.write_metrics([record(1, 0.3), record(2, 0.5)] if metrics is None else metrics)
    return folder


def record(epoch: int, ra: float, **others: Any) -> dict[str, Any]:
    known = {"lr": 0.1 * epoch, "loss": 2.0 / epoch, "implicit_share": 0.0, "val_sa": 0.9, "val_ra": ra}
    return {"epoch": epoch, **known, "val_top_class": 0.1, "val_alignment": 0.9 - 0.1 * epoch, **others}


def judge(
    folder: Path,
    ra: float,
    sa: float = 0.9,
    *,
    eps: float,
    checkpoint: str = "best.pt",
    epoch: int = 2,
    n: int = 20,
    steps: int = 50,
    images: str = "same",
) -> None:
    robust, clean = (np.arange(n) < round(share * n) for share in (ra, sa))
    settings = {"steps": steps, "restarts": 10, "step": eps / 4}
    about = {"checkpoint": checkpoint, "epoch": epoch, "data": "digits", "images": images, "seed": folder.name}
    outcome = Outcome(robust, None, settings)
    evaluation.write(Evaluation(Threat("linf", eps), 0, clean, {"pgd": outcome}, about=about), folder)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def check_files(paths: Sequence[Path], name: str) -> None:
    assert [path.name for path in paths] == [f"{name}.png", f"{name}.svg", f"{name}.csv"]
    pixels = matplotlib.image.imread(paths[0])
    assert pixels.shape[1] >= 800 and pixels[..., :3].std() > 0.05  # not an empty page
    assert ElementTree.parse(paths[1]).getroot().tag.endswith("svg")


# --- landscape --------------------------------------------------------------------------------------------------------


def test_the_landscape_is_that_of_the_checkpoint_on_test_images(trained: list[Path], tmp_path: Path) -> None:
    words = [str(run) for run in trained]
    options = ["--points", "3", "--images", "20", "--range", "1", "--device", "cpu", "--quiet"]
    assert main(["plot", "landscape", *words, *options, "--out", str(tmp_path)]) == 0
    check_files([tmp_path / f"landscape.{form}" for form in ("png", "svg", "csv")], "landscape")
    rows = table(tmp_path / "landscape.csv")
    assert len(rows) == 2 * 9 and {row["eps"] for row in rows} == {"0.2"}
    test = data.load("digits", root="").test
    test = test.subset(stratified_head(test.labels, 20))
    for run in trained:
        mine = [row for row in rows if row["run"] == str(run)]
        model = load_model(run, checkpoint="best")
        x = test.images.clone().requires_grad_()
        loss = cross_entropy(model(x), test.labels)
        (gradient,) = torch.autograd.grad(loss, x)
        (clean,) = [row for row in mine if (row["adversarial_in_eps"], row["random_in_eps"]) == ("0.0", "0.0")]
        (along,) = [row for row in mine if (row["adversarial_in_eps"], row["random_in_eps"]) == ("1.0", "0.0")]
        attacked = (test.images + 0.2 * gradient.sign()).clamp(0, 1)
        assert float(clean["loss"]) == pytest.approx(loss.item(), abs=1e-5) and clean["clamped"] == "0.0"
        assert float(along["loss"]) == pytest.approx(cross_entropy(model(attacked), test.labels).item(), abs=1e-4)
        assert float(along["loss"]) > float(clean["loss"])
    assert {row["method"] for row in rows} == {"fast-at", "fast-bat"} and {row["images"] for row in rows} == {"20"}


def test_the_axes_are_in_units_of_eps(trained: list[Path], tmp_path: Path) -> None:
    found = []
    for name, options in {"a": {"range": 2}, "b": {"eps": 0.1, "range": 4}, "c": {"range": 2, "eps": 0.1}}.items():
        (*_, path) = plot("landscape", trained[0], out=tmp_path / name, points=3, image=7, device="cpu", **options)
        found.append(np.array([float(row["loss"]) for row in table(path)]))
    assert np.allclose(found[0], found[1], atol=1e-6) and not np.allclose(found[0], found[2], atol=1e-3)


def test_one_scale_serves_all_panels_and_one_run_writes_beside_itself(trained: list[Path]) -> None:
    drawing = FIGURES.create("landscape", points=3, images=10, device="cpu", style="contour")
    numbers = drawing.measure(read_runs(trained))
    figure = drawing.draw(numbers)
    *panels, bar = figure.axes
    assert [axes.get_title() for axes in panels] == ["fast-at, ε = 0.2 (linf)", "fast-bat, ε = 0.2 (linf)"]
    assert "clamped to [0, 1]" in figure.get_supxlabel() and bar.get_ylabel() == "cross-entropy (nats)"
    losses = np.concatenate([each.found.loss.ravel() for each in numbers])
    limits = (losses.min(), losses.max())
    assert len(panels) == 2 and all(axes.collections[0].get_clim() == pytest.approx(limits) for axes in panels)
    surface = FIGURES.create("landscape", points=3, images=10, device="cpu")
    deep: list[Any] = surface.draw(numbers).axes[:2]
    assert all(axes.get_zlim() == pytest.approx(limits) for axes in deep)
    paths = plot("landscape", trained[0], points=3, images=10, device="cpu")
    assert [path.parent for path in paths] == [trained[0] / "plots"] * 3
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in plot("landscape", trained[0], points=3, images=10, device="cpu")] == before


def test_what_a_landscape_cannot_show_is_refused(trained: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave one of them out"):
        plot("landscape", trained[0], image=1, images=3)
    with pytest.raises(UserError, match="numbered 0 to 359: there is no image 360"):
        plot("landscape", trained[0], image=360, device="cpu")
    with pytest.raises(UserError, match="trained at eps 0: give --eps"):
        plot("landscape", made(tmp_path / "run", method="standard", eps=0.0))


# --- strength ---------------------------------------------------------------------------------------------------------


def sweep(folder: Path, *, test_eps: float | None = None) -> dict[Path, float]:
    found = {}
    cells = itertools.product(("fast-at", "fast-bat"), (0.1, 0.2), (0, 1, 2))
    for place, (method, eps, seed) in enumerate(cells):
        run = made(folder / f"{method}-{eps}-{seed}", method=method, eps=eps, seed=seed)
        found[run] = (place + 2) / 20
        judge(run, found[run], 0.95, eps=test_eps or eps)
        judge(run, 0.0, 0.0, eps=0.05)  # a record of another budget
    return found


def test_strength_shows_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    runs = sweep(tmp_path)
    paths = plot("strength", list(runs), out=tmp_path / "figures")
    check_files(paths, "strength")
    rows = {row["run"]: row for row in table(paths[2])}
    assert {run: float(rows[str(run)]["ra"]) for run in runs} == runs
    first = rows[str(tmp_path / "fast-at-0.1-0")]
    assert first["ra_mean"] == "0.15" and float(first["ra_std"]) == pytest.approx(0.05) and first["seeds"] == "3"
    assert float(first["sa_mean"]) == pytest.approx(0.95) and (first["test_eps"], first["train_eps"]) == ("0.1", "0.1")
    drawing = FIGURES.create("strength")
    robust, clean = drawing.draw(drawing.measure(read_runs(list(runs)))).axes
    lines = [container.lines[0] for container in robust.containers]
    assert [list(each.get_xdata()) for each in lines] == [[0.1, 0.2]] * 2
    assert np.allclose([each.get_ydata() for each in lines], [[0.15, 0.3], [0.45, 0.6]])
    assert robust.get_xlabel() == "ε of training (linf, images in [0, 1])" and clean.get_title() == "Clean accuracy"
    (bars,) = lines and robust.containers[0].lines[2]
    assert np.allclose([np.ptp(segment[:, 1]) for segment in bars.get_segments()], [0.1, 0.1])


def test_strength_at_one_test_eps_reads_those_records(tmp_path: Path) -> None:
    runs = sweep(tmp_path, test_eps=0.15)
    with pytest.raises(UserError, match=r"No record evaluates best\.pt of .*fast-at-0\.1-0. with pgd at eps 0\.1"):
        plot("strength", list(runs), out=tmp_path / "figures")
    (*_, path) = plot("strength", list(runs), out=tmp_path / "figures", test_eps="0.15")
    assert [float(row["ra"]) for row in table(path)] == list(runs.values())


def test_what_is_missing_is_told_with_the_command_that_makes_it(tmp_path: Path, capsys: Any) -> None:
    run = made(tmp_path / "a run", eps=8 / 255)
    said = refusal(capsys, "plot", "strength", str(run), "--checkpoint", "last", "--attack", "autoattack")
    command = said.partition("`adv-train eval ")[2].partition("`")[0]
    assert f"eval '{run}' --eps 8/255 --attacks autoattack --checkpoint last" in said and command
    read = eval_command.read([str(run), *command.replace(f"'{run}'", "").split()])
    assert (read.run, read.eps, read.attacks, read.checkpoint) == (run, (8 / 255,), "autoattack", "last")


def test_one_record_stands_for_both_checkpoints_of_one_epoch(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    judge(run, 0.4, eps=0.2)  # best.pt is epoch 2 of 2
    (*_, path) = plot("strength", run, out=tmp_path, checkpoint="last")
    assert table(path)[0]["ra"] == "0.4"
    judge(run, 0.2, eps=0.2, checkpoint="last.pt", epoch=1)
    other = made(tmp_path / "other", [record(1, 0.5), record(2, 0.3)])
    judge(other, 0.4, eps=0.2, epoch=1)
    with pytest.raises(UserError, match=r"No record evaluates last\.pt"):
        plot("strength", other, out=tmp_path, checkpoint="last")


def test_lines_split_by_options_where_they_differ_at_one_eps(tmp_path: Path) -> None:
    def lines(*values: dict[str, Any]) -> list[str]:
        runs = []
        for value in values:
            runs.append(made(tmp_path / f"{len(list(tmp_path.iterdir()))}", **value))
            judge(runs[-1], 0.4, eps=value["eps"])
        (*_, path) = plot("strength", runs, out=tmp_path / "figures")
        return [row["line"] for row in table(path)]

    bat = {"method": "fast-bat", "eps": 0.2}
    # A step that follows eps, as in the presets, does not tear a line apart.
    assert lines({**bat, "step": 5}, {**bat, "eps": 0.1, "step": 2}) == ["fast-bat"] * 2
    assert lines(bat, {**bat, "ig_weight": 0}) == ["fast-bat(ig_weight=1)", "fast-bat(ig_weight=0)"]
    with pytest.raises(UserError, match=r"both fast-bat at eps 0\.2 and differ in epochs"):
        lines(bat, {**bat, "epochs": 3, "seed": 1})
    with pytest.raises(UserError, match="has the seed, method and eps of another run"):
        lines(bat, bat)
    with pytest.raises(UserError, match="compare runs on the same data and norm"):
        lines(bat, {**bat, "norm": "l2"})


@pytest.mark.parametrize("other", [{"n": 10}, {"images": "others"}, {"steps": 2}])
def test_records_of_other_images_or_of_another_attack_are_warned_of(tmp_path: Path, other: dict[str, Any]) -> None:
    runs = [made(tmp_path / f"{eps}", eps=eps) for eps in (0.1, 0.2)]
    judge(runs[0], 0.4, eps=0.1)
    judge(runs[1], 0.4, eps=0.2, **other)
    with pytest.warns(UserWarning, match="evaluate them alike"):
        plot("strength", runs, out=tmp_path)


# --- alignment and curves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alignment", "curves"])
def test_what_is_drawn_by_epoch_is_what_was_recorded(name: str, trained: list[Path], tmp_path: Path) -> None:
    assert main(["plot", name, *map(str, trained), "--out", str(tmp_path)]) == 0
    check_files([tmp_path / f"{name}.{form}" for form in ("png", "svg", "csv")], name)
    expected = [(run, line) for run in trained for line in RunFolder(run).metrics()]
    rows = table(tmp_path / f"{name}.csv")
    assert [(row["run"], int(row["epoch"])) for row in rows] == [(str(run), line["epoch"]) for run, line in expected]
    keys = ["val_alignment"] if name == "alignment" else ["loss", "lr", "val_sa", "val_ra", "implicit_share"]
    for row, (_, recorded) in zip(rows, expected, strict=True):
        assert [float(row[key]) for key in keys] == [recorded[key] for key in keys]  # every digit comes back


def test_the_ring_is_at_the_best_epoch_of_the_selection(tmp_path: Path) -> None:
    metrics = [record(1, 0.2, val_sa=0.95), record(2, 0.6), record(3, 0.4)]
    runs = [made(tmp_path / select, metrics, epochs=3, select=select) for select in ("robust", "clean", "last")]
    drawing = FIGURES.create("curves")
    figure = drawing.draw(drawing.measure(read_runs(runs)))
    panels = {axes.get_title(): axes for axes in figure.axes}
    # No run has an implicit part, so its panel is left out.
    assert [title.partition(" ")[0] for title in panels] == ["Training", "Learning", "Clean", "Robust", "Gradient"]
    robust = panels["Robust accuracy on the validation images"].get_lines()
    assert [list(each.get_ydata()) for each in robust[::2]] == [[0.2, 0.6, 0.4]] * 3
    assert [(list(ring.get_xdata()), list(ring.get_ydata())) for ring in robust[1::2]] == [
        ([2.0], [0.6]),
        ([1.0], [0.2]),
        ([3.0], [0.4]),
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["robust", "clean", "last", "epoch in best.pt"]
    drawing.rows(read_runs(runs))
    assert [row["best"] for row in drawing.rows(read_runs(runs))] == [0, 1, 0, 1, 0, 0, 0, 0, 1]


ROBUST = [0.2, 0.5, 0.6, 0.05, 0.02]
ONE_STEP = [0.3, 0.55, 0.65, 0.8, 0.85]


def curves(*runs: Path) -> tuple[list[Any], list[str], list[dict[str, Any]]]:
    """The lines of the robust panel, the legend and the rows."""
    drawing = FIGURES.create("curves")
    numbers = drawing.measure(read_runs(runs))
    figure = drawing.draw(numbers)
    (panel,) = (axes for axes in figure.axes if axes.get_title() == "Robust accuracy on the validation images")
    (legend,) = figure.legends
    return panel.get_lines(), [text.get_text() for text in legend.get_texts()], drawing.rows(numbers)


def test_one_fgsm_step_is_drawn_beside_pgd_and_a_cross_marks_where_they_part(tmp_path: Path) -> None:
    metrics = [record(place, ra, val_fgsm=ONE_STEP[place - 1]) for place, ra in enumerate(ROBUST, start=1)]
    (whole, thin, ring, cross), legend, rows = curves(made(tmp_path / "run", metrics, epochs=5))
    assert (list(whole.get_ydata()), list(thin.get_ydata())) == (ROBUST, ONE_STEP)
    assert thin.get_linewidth() < whole.get_linewidth() and thin.get_color() == whole.get_color()
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([3.0], [0.6])
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([4.0], [0.05]) and cross.get_marker() == "x"
    assert legend == ["fast-at", "epoch in best.pt", "accuracy after one FGSM step", "overfitted to its attack"]
    assert [row["val_fgsm"] for row in rows] == ONE_STEP
    assert [row["overfitted"] for row in rows] == [0, 0, 0, 1, 0]


def test_a_cross_marks_what_the_alarm_tells_of_and_what_was_rolled_back(tmp_path: Path) -> None:
    metrics = [record(place, ra) for place, ra in enumerate(ROBUST, start=1)]
    assert "after epoch 4" in str(evaluation.overfitting(metrics))
    metrics[3] |= {"rolled_back_to": 3}  # Epoch 5 is the first that overfitted and stayed.
    assert "after epoch 5" in str(evaluation.overfitting(metrics))
    (_, _, cross), legend, rows = curves(made(tmp_path / "run", metrics, epochs=5, rollback=True))
    assert list(cross.get_xdata()) == [4.0, 5.0] and "accuracy after one FGSM step" not in legend
    assert {row["val_fgsm"] for row in rows} == {None}
    # Standard training has no attack to overfit to, and an honest run does not.
    for name, kept, method in (("plain", [*metrics[:3], metrics[4]], "standard"), ("honest", metrics[:3], "fast-at")):
        lines, legend, rows = curves(made(tmp_path / name, kept, epochs=5, method=method))
        assert len(lines) == 2 and "overfitted to its attack" not in legend
        assert not any(row["overfitted"] for row in rows)


def test_runs_from_before_alignment_was_recorded_are_told_apart(tmp_path: Path) -> None:
    old = [{key: value for key, value in record(epoch, 0.5).items() if key != "val_alignment"} for epoch in (1, 2)]
    run, empty = made(tmp_path / "old", old), made(tmp_path / "flat", [record(1, 0.5, val_alignment=None)])
    with pytest.raises(UserError, match="was trained by a version that did not record gradient alignment"):
        plot("alignment", [made(tmp_path / "new"), run], out=tmp_path)
    with pytest.raises(UserError, match="no finite gradient on any validation image"):
        plot("alignment", empty, out=tmp_path)
    (*_, path) = plot("curves", run, out=tmp_path)
    assert [row["val_alignment"] for row in table(path)] == ["", ""]
    half = made(tmp_path / "half", [old[0], record(2, 0.5)])  # begun before, ended after
    (*_, path) = plot("alignment", half, out=tmp_path)
    assert [(row["epoch"], float(row["val_alignment"])) for row in table(path)] == [("2", pytest.approx(0.7))]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_help_lists_the_figures_without_matplotlib() -> None:
    code = (
        "import sys; from adv_train.cli import main; status = main(['plot', '--help']); "
        "sys.exit(status or ('matplotlib' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("landscape", "strength", "alignment", "curves"):
        assert f"\n  {name}" in done.stdout


@pytest.mark.parametrize("name", FIGURES.names())
def test_each_figure_explains_its_flags_by_examples_that_work(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plot", name, "--help"])
    said = capsys.readouterr().out
    assert "RUN..." in said and "Run folders" in said
    for example in FIGURES.find(name).examples.splitlines()[1:]:  # type: ignore[attr-defined]
        _, command, figure, *words = example.split()
        read, drawing = plot_command.read([figure, *words])
        assert command == "plot" and FIGURES.name_of(drawing) == name and len(read.runs) >= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name the figure to draw: alignment, curves, landscape, strength"),
        (["landscap", "run"], "Unknown figure `landscap`. Did you mean `landscape`"),
        (["curves"], "Give at least one RUN"),
        (["curves", "nowhere"], "`nowhere` is not a run folder"),
        (["curves", "run", "run/"], "`run` is given twice"),
        (["curves", "run", "--points", "3"], "`--points`"),
        (["landscape", "run", "--points", "1"], "`points` must be a whole number of at least 2"),
        (["landscape", "run", "--style", "heat"], "Unknown style `heat`"),
        (["alignment", "begun"], "`begun` has no finished epoch"),
        (["strength", "run", "--attack", "pdg"], "Unknown attack `pdg`. Did you mean `pgd`"),
        (["curves", "run", "--out", "run/config.yaml"], "Cannot make the folder"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("run"))
    made(Path("begun"), [])
    assert said in refusal(capsys, "plot", *words)
    assert not Path("plots").exists() and not Path("run/plots").exists()


def test_several_runs_are_drawn_into_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("a$b_1"))
    made(Path("c$d^2"), seed=1)  # both dollars would begin a formula
    assert main(["plot", "curves", "a$b_1", "c$d^2"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"written to plots/curves.{form}" for form in ("png", "svg", "csv")]


def test_runs_are_called_by_method_then_folder_then_path(tmp_path: Path) -> None:
    a, b = made(tmp_path / "x" / "a"), made(tmp_path / "x" / "b", method="pgd-at")
    c, d = made(tmp_path / "y" / "a"), made(tmp_path / "y" / "c", method="pgd-at")
    for runs, names in (([a, b], ["fast-at", "pgd-at"]), ([b, d], ["b", "c"]), ([a, c], [str(a), str(c)])):
        assert [run.name for run in read_runs(runs)] == names


def test_seven_lines_differ_in_grey() -> None:
    """By their dash, and where dashes come again by their marker or colour."""
    looks = [json.dumps([line(index), plots.style.MARKERS[index]]) for index in range(7)]
    assert len(set(looks)) == 7 and len({str(line(index)["linestyle"]) for index in range(6)}) == 6

"""`adv-train table`: published figures, every preset at the smallest scale; resumed, failing, estimated, refused."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import adv_train
from adv_train import data, models
from adv_train.attacks import Square
from adv_train.cli import main
from adv_train.comparison import Cell
from adv_train.config import PRESETS
from adv_train.data import DATASETS, PUBLISHED_FACTS, Facts
from adv_train.reproduction import SCALES, TABLES, Published, PublishedTable, Scale
from tests.applications.published_files import any_checksum, network
from tests.applications.test_cifar import write_cifar10
from tests.applications.test_compare_command import here, judged, nowhere, work

SHARED = Path(__file__).resolve().parents[3] / "shared"
TOY = ["--scale", "smoke", "--train-limit", "60", "--epochs", "1", "--limit", "20", "--device", "cpu", "--quiet"]
CELLS = ["cifar10-8-fast-at", "cifar10-8-fast-at-ga", "cifar10-8-fast-bat"]
WORDS = ["table-1", "--only", "cifar10-8", "--seeds", "0-1", *TOY]


def table(out: Path, *words: str, by: Callable[..., str | None] = here) -> int:
    with work(by):
        return main(["table", *words, "--out", str(out)])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table") / "out"
    assert table(out, *WORDS) == 0
    return out


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "table.json").read_text())
    return found


# --- what is published ------------------------------------------------------------------------------------------------


def test_the_published_figures_are_those_of_the_design_page() -> None:
    page = SHARED / "design" / "ADVERSARIAL.md"
    if not page.is_file():
        pytest.skip("the design page with the published tables is not here")
    found: set[str] = set(re.findall(r"[\d.]+\??\+-[\d.]+", page.read_text()[: page.read_text().index("## How those")]))
    ours = {
        f"{figure.mean:.2f}{'?' if figure.doubtful else ''}+-{figure.std:.2f}"
        for name in ("table-1", "table-2")
        for row in PublishedTable.find(name).cells.values()
        for measure, figure in row.items()
        if measure != "seconds"
    }
    assert ours == found


def test_the_tables_have_the_cells_of_the_paper() -> None:
    first, second = PublishedTable.find("table-1").cells, PublishedTable.find("table-2").cells
    assert list(first) == [
        f"{name}-{eps}-{method}"
        for name in ("cifar10", "cifar100", "tiny-imagenet")
        for eps in (8, 16)
        for method in ("fast-at", "fast-at-ga", "fast-bat")
    ]
    assert list(second) == [
        f"cifar10-{eps}-{method}-{model}"
        for model in ("preact-resnet-50", "wrn-22-8")
        for eps in (8, 16)
        for method in ("fast-at", "fast-at-ga", "pgd-at", "fast-bat")
    ]
    assert first["tiny-imagenet-16-fast-bat"]["autoattack"] == Published(5.52, 0.14)
    assert second["cifar10-16-fast-bat-wrn-22-8"]["pgd"] == Published(25.03, 0.44, doubtful=True)
    assert first["cifar10-8-fast-bat"]["seconds"] == Published(61.4)
    for name in TABLES:
        assert set(PublishedTable.find(name).cells) <= set(PRESETS)


@pytest.mark.parametrize("text", ["45.49 +- 0.21", "about 45", "", "± 0.21"])
def test_a_figure_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a figure"):
        Published.read(text)


def test_a_whole_name_keeps_one_cell_and_a_part_keeps_all_that_contain_it() -> None:
    table = PublishedTable.find("table-1")
    assert list(table.only("cifar10-8-fast-at").cells) == ["cifar10-8-fast-at"]
    assert list(table.only("cifar10-8-fast-a").cells) == ["cifar10-8-fast-at", "cifar10-8-fast-at-ga"]
    both = list(table.only("fast-bat, cifar10-8-fast-at").cells)
    assert both[0] == "cifar10-8-fast-at" and len(both) == 7 and table.only("") == table
    for name in TABLES:
        found = PublishedTable.find(name)
        assert all(list(found.only(cell).cells) == [cell] and found.only(cell).notes for cell in found.cells)


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_trained_at_the_smallest_scale(name: str, tmp_path: Path) -> None:
    config = Scale.find("smoke").contender(name).config({}, {"train_limit": 64, "device": "cpu"}, 0)
    assert (config.data.name, config.model.name) == ("digits", "small-cnn")
    result = adv_train.fit(config.stretched(1 / config.training.epochs), out=tmp_path / "run", progress=False)
    assert result.best["epoch"] == 1 and result.best["loss"] > 0


@pytest.mark.parametrize("scale", list(SCALES))
@pytest.mark.parametrize("name", [cell for table in TABLES for cell in PublishedTable.find(table).cells])
def test_every_cell_keeps_its_method_and_budget_at_every_scale(name: str, scale: str) -> None:
    chosen = Scale.find(scale)
    published = Scale.find("full").contender(name).config({}, {}, 0)
    config = chosen.contender(name).config({}, {}, 0)
    assert (config.method, config.threat) == (published.method, published.threat)
    if scale == "cpu":
        facts = PUBLISHED_FACTS[config.data.name].arguments
        model = models.create(config.model.name, **facts, seed=0, **config.model.options)
        assert sum(weights.numel() for weights in model.parameters()) < 600_000


def test_a_scale_has_other_settings_for_single_tables() -> None:
    usual, longer = Scale.find("cpu", "table-1"), Scale.find("cpu", "table-2")
    assert usual == Scale.find("cpu") and (usual.seeds, usual.epochs, usual.limit) == ("0-1", 10, 1000)
    assert (longer.seeds, longer.epochs, longer.limit) == ("0", 4, 500)
    assert {**usual.config, "train_limit": 4000, "validation_images": 250} == longer.config
    assert longer.about != usual.about and longer.models == usual.models
    for scale in SCALES:
        assert {Scale.find(scale, table).name for table in TABLES} == {scale}
        assert set(SCALES[scale].get("tables", {})) <= set(TABLES)


def test_another_network_has_its_own_options() -> None:
    cell = Scale.find("cpu").contender("cifar10-8-fast-bat-wrn-22-8")
    found = [cell.config({}, flags, 0).model.options for flags in ({}, {"widening": 2}, {"model": "small-cnn"})]
    assert [options.get("widening") for options in found] == [1, 2, None]
    assert [options.get("dropout") for options in found] == [0.1, 0.1, None]


def test_a_widened_network_is_the_one_of_that_name() -> None:
    arguments = PUBLISHED_FACTS["cifar10"].arguments
    ours = models.create("wrn-28-10", **arguments, seed=0, widening=2)
    widths = {len(weights) for weights in ours.parameters() if weights.ndim == 4}
    assert widths == {16, 32, 64, 128}


# --- what is made -----------------------------------------------------------------------------------------------------


def test_measured_stands_beside_published(done: Path) -> None:
    cells = record(done)["cells"]
    assert [cell["name"] for cell in cells] == CELLS
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (done / "table.md").read_text().splitlines()]
    head, _, *body = [row for row in rows if row]
    assert head[:8] == [
        "cell",
        "seeds",
        "SA best",
        "SA last",
        "SA published",
        "RA-PGD best",
        "RA-PGD last",
        "RA-PGD published",
    ]
    for row, cell in zip(body, cells, strict=True):
        for entry in cell["measured"]:
            truth = [judged(done / f"{cell['name']}-seed{s}", entry["checkpoint"])[entry["measure"]] for s in (0, 1)]
            assert list(entry["by_seed"].values()) == truth
            told = f"{50 * sum(truth):.1f} ± {100 * abs(truth[0] - truth[1]) / 2**0.5:.1f} %"
            assert row[2 + 3 * (entry["measure"] == "pgd") + (entry["checkpoint"] == "last")] == told
        seconds = [
            json.loads(line)["train_seconds"]
            for seed in (0, 1)
            for line in (done / f"{cell['name']}-seed{seed}" / "timing.jsonl").read_text().splitlines()
        ]
        assert cell["seconds_per_epoch"] == pytest.approx(sum(seconds) / len(seconds))
        assert row[11] == f"{cell['seconds_per_epoch']:.2f}" and head[11:13] == ["s/epoch", "s/epoch published"]
    assert body[2][4] == "79.97 ± 0.12 %" and body[2][7] == "48.83 ± 0.17 %" and body[2][8] == "–"
    assert body[2][10] == "45.19 ± 0.12 %" and body[2][12] == "61.4"
    assert "The published RA-PGD is PGD-50-10." in (done / "table.md").read_text()
    assert "cifar10-8-fast-bat" in (done / "report.html").read_text()


def test_the_csv_has_one_number_a_cell(done: Path) -> None:
    lines = list(csv.DictReader(io.StringIO((done / "table.csv").read_text())))
    found = {(line["cell"], line["checkpoint"], line["accuracy"]): line for line in lines}
    assert list(found) == [
        (name, checkpoint, accuracy)
        for name in CELLS
        for accuracy in ("SA", "RA-PGD", "RA-AA")
        for checkpoint in ("best", "last")
    ]
    for (name, checkpoint, accuracy), line in found.items():
        published = PublishedTable.find("table-1").cells[name]
        figure = published[{"SA": "sa", "RA-PGD": "pgd", "RA-AA": "autoattack"}[accuracy]]
        assert figure.std is not None and line["published doubtful"] == "false"
        assert float(line["published"]) == pytest.approx(figure.mean / 100, abs=1e-12)
        assert float(line["published std"]) == pytest.approx(figure.std / 100, abs=1e-12)
        assert float(line["s/epoch published"]) == published["seconds"].mean and float(line["F/batch"]) > 0
        assert float(line["s/epoch"]) > 0 and line["alarms"].isdigit()
        if accuracy == "RA-AA":
            assert (line["seeds"], line["mean"], line["std"]) == ("0", "", "")
            continue
        measure = "sa" if accuracy == "SA" else "pgd"
        truth = [judged(done / f"{name}-seed{seed}", checkpoint)[measure] for seed in (0, 1)]
        assert line["seeds"] == "2" and float(line["mean"]) == pytest.approx(sum(truth) / 2)
        assert float(line["std"]) == pytest.approx(abs(truth[0] - truth[1]) / 2**0.5, abs=1e-12)


def test_the_csv_marks_doubtful_figures_and_leaves_what_is_not_published_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for cells in (
        ["table-2", "--only", "cifar10-16-fast-bat-wrn-22-8"],
        ["benchmark-8", "--only", "pgd-at-benchmark-2"],
    ):
        with work(lambda *_: "not here"):
            assert main(["table", *cells, *TOY, "--form", "csv", "--out", str(tmp_path / cells[0])]) == 1
        found.append({line["accuracy"]: line for line in csv.DictReader(io.StringIO(capsys.readouterr().out))})
    assert [found[0]["RA-PGD"][key] for key in ("published", "published doubtful", "seeds")] == ["0.2503", "true", "0"]
    for line in found[1].values():
        assert all(line[key] == "" for key in ("published", "published std", "published doubtful", "s/epoch published"))


def test_the_latex_says_what_was_measured(done: Path) -> None:
    *comments, tabular = (done / "table.tex").read_text().partition("\\begin{tabular}")[0::2]
    assert tabular.rstrip().endswith("\\end{tabular}") and "cifar10-8-fast-bat" in tabular
    title, settings = comments[0].splitlines()
    assert title.startswith("% Table 1 of Zhang et al.") and "Scale smoke: " in title
    assert settings == "% digits: 60 training images, 20 test images, PGD-2-1; 1 epochs."


def test_the_record_says_what_was_measured(done: Path) -> None:
    found = record(done)
    assert found["seeds"] == [0, 1] and found["notes"] == ["The published RA-PGD is PGD-50-10."]
    for cell in found["cells"]:
        assert (cell["training_images"], cell["images"]) == (60, 20)
        assert cell["attacks"] == {"pgd": {"steps": 2, "restarts": 1}}


def test_an_attack_with_options_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["table-1", "--only", "cifar10-8-fast-at", "--seeds", "0", *TOY]
    assert table(tmp_path / "out", *words, "--attacks", "pgd(steps=2, restarts=1, step=0.01)") == 0
    (cell,) = record(tmp_path / "out")["cells"]
    assert cell["attacks"] == {"pgd": {"steps": 2, "restarts": 1, "step": 0.01}}
    assert [entry["n"] for entry in cell["measured"]] == [1, 1, 1, 1]
    assert "PGD-2-1 with steps of 0.01; 1 epochs." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["timing.jsonl", "metrics.jsonl", "evaluations"])
def test_a_damaged_record_fails_its_run_alone(
    name: str, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    run = "cifar10-8-fast-at-seed0"
    for path in (out / run / name).glob("*.npz") if name == "evaluations" else [out / run / name]:
        path.write_bytes(b"{")
    assert table(out, *WORDS) == 1
    said = capsys.readouterr()
    assert f"adv-train: error: {run}: " in said.err and name in said.err and "Traceback" not in said.err
    assert f"{run}: " in said.out
    cells = record(out)["cells"]
    assert [cell["measured"][0]["n"] for cell in cells] == [1, 2, 2]
    assert name in cells[0]["failed"][run]
    assert cells[1:] == [cell for cell in record(done)["cells"] if cell["name"] in CELLS[1:]]


def test_a_damaged_checkpoint_is_missing_from_the_report_alone(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    (out / "cifar10-8-fast-at-seed0" / "best.pt").write_bytes(b"x")
    assert table(out, *WORDS, by=nowhere) == 0
    said = capsys.readouterr().err
    assert "adv-train: warning: report.html does not show cifar10-8-fast-at-seed0: " in said and said.count("\n") == 1
    assert record(out) == record(done)


def test_only_what_is_missing_is_run(done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    assert table(out, *WORDS, by=nowhere) == 0
    shutil.rmtree(out / "cifar10-8-fast-at-seed1")
    started: list[str] = []

    def watched(_: Any, cell: Cell, words: list[str], tell: Callable[[str], None]) -> str | None:
        started.extend([cell.name] if words[0] == "fit" else [])
        return here(_, cell, words, tell)

    assert table(out, *WORDS, by=watched) == 0
    assert started == ["cifar10-8-fast-at-seed1"]
    same = [[cell["measured"] for cell in record(folder)["cells"]] for folder in (out, done)]
    assert same[0] == same[1]


def test_a_cell_that_fails_leaves_the_others_alone(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    for name in CELLS[:2]:
        shutil.rmtree(out / f"{name}-seed1")

    def failing(_: Any, cell: Cell, words: list[str], tell: Callable[[str], None]) -> str | None:
        return "the disk is full" if cell.name == "cifar10-8-fast-at-seed1" else here(_, cell, words, tell)

    assert table(out, *WORDS, by=failing) == 1
    said = capsys.readouterr()
    assert "cifar10-8-fast-at-seed1: the disk is full" in said.err and "the disk is full" in said.out
    assert [len(cell["measured"][0]["by_seed"]) for cell in record(out)["cells"]] == [1, 2, 2]


def test_data_that_are_missing_leave_the_other_cells_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network(monkeypatch)
    any_checksum(monkeypatch)
    (tmp_path / "data").mkdir()
    write_cifar10(tmp_path / "data")
    words = ["table-1", "--only", "cifar10-8-fast-at*,cifar100-8-fast-at*", "--scale", "cpu", "--seeds", "0"]
    words += ["--data-root", str(tmp_path / "data"), "--model", "small-cnn", "--train-limit", "40", "--epochs", "1"]
    words += ["--batch-size", "20", "--validation-steps", "1", "--limit", "10", "--pgd-steps", "1", "--device", "cpu"]
    assert table(tmp_path / "out", *words, "--quiet") == 1
    said = capsys.readouterr().out
    assert said.count("cifar100-8-fast-at, cifar100-8-fast-at-ga: ") == 1 and "cifar-100-python.tar.gz" in said
    assert [cell["name"] for cell in record(tmp_path / "out")["cells"]] == CELLS[:2]


# --- what it would take -----------------------------------------------------------------------------------------------


def test_a_dry_run_needs_no_data_and_counts_what_the_cells_would_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["table-1", "--only", "cifar10-8-fast-at", "--seeds", "0-4", "--dry-run", "--device", "cpu", "--price", "2"]
    assert table(out, *words, "--attacks", "pgd", by=nowhere) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| cifar10-8-fast-at "))
    runs, epochs, training, judging, pflop, hours = (float(cell) for cell in row.split("|")[2:-1])
    assert (runs, epochs) == (5, 20)
    # 5 F a step on 45,000 images, and PGD-5 and a step on 500, 20 times; twice PGD-50-10 on those that are left.
    assert training == pytest.approx(5 * 20 * (5 * 45_000 + 16 * 500 + 4 * 256) / 1e6, rel=0.003)
    assert judging == pytest.approx(5 * 2 * 10_000 * (1 + (0.8239 + 9 * 0.4549) * 101) / 1e6, rel=0.003)
    assert pflop == pytest.approx((training + judging) * 1e6 * 1.11e9 / 1e15, rel=0.02)
    total = re.search(r"About ([\d.e+]+) hours .*, ([\d.]+) at 2 an hour", text)
    assert total is not None and hours > 0 and float(total[2]) == pytest.approx(2 * float(total[1]), rel=0.01)
    assert not out.exists()


def test_a_dry_run_names_the_attacks_whose_cost_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["table-1", "--scale", "smoke", "--only", "cifar10-8-fast-bat", "--attacks", "pgd,square", "--dry-run"]
    found = []
    for cost in (None, 1000.0):
        monkeypatch.setattr(Square, "cost", lambda *_, cost=cost: cost)
        assert table(tmp_path / "out", *words, "--device", "cpu", by=nowhere) == 0
        text = capsys.readouterr().out
        assert ("Not counted, because its cost is not known: square." in text) is (cost is None)
        row = next(line for line in text.splitlines() if line.startswith("| cifar10-8-fast-bat "))
        found.append(float(row.split("|")[5]))
    # Both checkpoints on 100 images.
    assert found[1] - found[0] == pytest.approx(2 * 100 * 1000.0 / 1e6, abs=0.005)


@pytest.mark.parametrize("name", list(PUBLISHED_FACTS))
def test_what_is_known_of_the_published_data_agrees_with_their_names(name: str) -> None:
    assert name in DATASETS.names()
    facts = PUBLISHED_FACTS[name].limited(100)
    assert (facts.train, facts.validation) == (100, 100) and facts.test == PUBLISHED_FACTS[name].test
    assert PUBLISHED_FACTS[name].limited(None) == PUBLISHED_FACTS[name]


def test_facts_are_those_of_a_loaded_data_set() -> None:
    dataset = data.load("digits", root=".")
    facts = Facts.of(dataset)
    assert facts.train + facts.validation + facts.test == 1797
    assert facts.arguments["image_size"] == 8 and facts.arguments["classes"] == 10


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Say which table to reproduce"),
        (["table-3"], "table `table-3`.*`table-"),
        (["table-1", "--scale", "smok"], "scale `smok`.*`smoke`"),
        (["table-1", "--only", "cifar11"], "--only cifar11 matches no cell of table-1"),
        (["table-1", "--seeds", "9-0"], "`seeds` must be a list such as 0-9"),
        (["table-1", "--seeds", "0,a"], "`seeds` must be a list such as 0-9"),
        (["table-1", "--seeds", "0-1000000"], "`seeds` must be at most 1000"),
        (["table-1", "--seed", "3"], "give --seeds, not --seed"),
        (["table-1", "--attacks", ","], "--attacks names no attack"),
        (["table-1", "--attacks", "pdg"], "attack `pdg`"),
        (["table-1", "--scale", "smoke", "--base-width", "8"], "base"),
    ],
)
def test_bad_input_is_told_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table(tmp_path / "out", *words, "--dry-run", by=nowhere) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1 and not (tmp_path / "out").exists()

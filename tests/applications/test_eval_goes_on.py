"""`adv-train eval` with several budgets, going on where it stopped, other attacks, and images in a file."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

import adv_train
from adv_train import data, evaluation
from adv_train.attacks import ATTACKS, PGD, TargetedPGD, Transfer, Verdicts
from adv_train.attacks.judging import Judging
from adv_train.attacks.named import named_attacks
from adv_train.attacks.official import OfficialAttack
from adv_train.cli import compare, doctor, listing, main
from adv_train.cli import evaluation as cli_evaluation
from adv_train.comparison.cell import Judgement
from adv_train.errors import UserError
from adv_train.evaluate import evaluate
from adv_train.evaluate_run import evaluate_run
from adv_train.loading import load_model
from adv_train.records import RunFolder
from adv_train.threat import Threat
from tests.applications.test_bad_input import refusal

QUICK = ["--pgd-steps", "2", "--pgd-restarts", "1", "--limit", "30", "--device", "cpu", "--quiet"]
BRIEF = "square(queries=20)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("digits") / "run"
    chosen = {"data": "digits", "method": "fast-at", "model": "small-cnn", "epochs": 4, "device": "cpu", "lr": 0.1}
    adv_train.fit(None, out=run, progress=False, eps=0.1, **chosen)
    return {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}


@pytest.fixture
def run(trained: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "other"):
        Path(folder).mkdir()
        for name, content in trained.items():
            (Path(folder) / name).write_bytes(content)
    return Path("run")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ran, in its order: the name of the attack and its budget."""
    made: list[str] = []
    for kind in (PGD, OfficialAttack, TargetedPGD, Transfer):
        monkeypatch.setattr(kind, "judge", noted(kind.judge, made))
    return made


def noted(attack: Callable[..., Verdicts], made: list[str]) -> Callable[..., Verdicts]:
    def judge(self: Any, model: Any, x: Tensor, y: Tensor, threat: Threat, *others: Any) -> Verdicts:
        made.append(f"{ATTACKS.name_of(self)} {threat.eps:.3f}")
        if STOP and STOP[0] == made[-1]:
            raise KeyboardInterrupt
        return attack(self, model, x, y, threat, *others)

    return judge


STOP: list[str] = []


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda where: monkeypatch.setitem(globals(), "STOP", [where])


def content(folder: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "eval.json").read_text())
    return found


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "evaluations").iterdir())


# --- several budgets, and what is there already ----------------------------------------------------------------------


def test_each_budget_has_its_record_and_a_repeat_runs_only_what_is_missing(
    run: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run), *QUICK, "--attacks", f"pgd,{BRIEF}"]
    assert main([*words, "--eps", "0.05"]) == 0
    assert ran == ["pgd 0.050", "square 0.050"]
    assert "Already evaluated" not in capsys.readouterr().out
    ran.clear()
    assert main([*words, "--eps", "0.05,8/255,0.05"]) == 0
    assert ran == ["pgd 0.031", "square 0.031"]
    said = capsys.readouterr().out
    assert said.count("Already evaluated: run/evaluations/best-") == 1
    assert "fast-at, ε = 0.05 " in said and "fast-at, ε = 0.03137 " in said and "At ε = 0.05:" in said
    found = content(run)
    assert sorted(record["eps"] for record in found["records"]) == pytest.approx([8 / 255, 0.05])
    for record in found["records"]:
        assert record["n"] == 30 and record["of"] == 360 == len(data.load("digits", root="").test)
        low, high = (f"{100 * end:.1f}" for end in record["intervals"]["ra"]["square"])
        assert f"{100 * record['ra']['square']:.1f} % [{low}, {high}]" in said
    assert said.count("The test set has 360 images; the intervals assume that the 30 are a random sample.") == 2
    before = {name: (run / "evaluations" / name).read_bytes() for name in files(run)}
    ran.clear()
    assert main([*words, "--eps", "8/255,0.05", "--again"]) == 0
    assert ran == ["pgd 0.031", "square 0.031", "pgd 0.050", "square 0.050"]
    assert files(run) == list(before)
    assert "Already evaluated" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "1"], ["pgd 0.100", "square 0.100"]),
        (["--checkpoint", "last"], ["pgd 0.100", "square 0.100"]),
        (["--pgd-steps", "3"], ["pgd 0.100"]),
        (["--limit", "31"], ["pgd 0.100", "square 0.100"]),
        (["--batch-size", "16"], ["square 0.100"]),  # Square's random numbers depend on it, those of PGD do not.
        (["--attacks", "square(queries=21),pgd"], ["square 0.100"]),
        (["--attacks", f"pgd-targeted(steps=2),{BRIEF}"], ["pgd-targeted 0.100"]),
        (["--attacks", BRIEF], []),
    ],
)
def test_attacks_that_a_record_has_are_taken_over(
    run: Path, ran: list[str], words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = [main(["eval", str(run), *QUICK, "--attacks", f"pgd,{BRIEF}"])]
    before = evaluation.read(run)
    ran.clear()
    capsys.readouterr()
    assert first == main(["eval", str(run), *QUICK, "--attacks", f"pgd,{BRIEF}", *words]) == 0
    assert ran == expected
    both = evaluation.read_all(run)
    assert len(both) == 2 and (run / "evaluations" / "unfinished").exists() is False
    told = "Reused finished attacks: " in capsys.readouterr().out
    assert told == (len(expected) < 2)
    if told:
        (new,) = [record for record in both if record.summary() != before.summary()]
        (taken,) = {"pgd", "square"} & set(new.attacks) - {name.split()[0] for name in expected}
        assert np.array_equal(new.attacks[taken].robust, before.attacks[taken].robust)
        assert np.array_equal(new.attacks[taken].predicted, before.attacks[taken].predicted)


def test_an_interrupted_evaluation_does_not_run_again_what_was_done(
    run: Path, ran: list[str], stop: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run), *QUICK, "--attacks", f"pgd,{BRIEF},pgd-targeted(steps=2)", "--eps", "0.05,0.1"]
    stop("square 0.100")
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, attacks=made("pgd(steps=2, restarts=1)", BRIEF), eps=0.1, limit=30, device="cpu")
    stop("pgd-targeted 0.100")
    assert ran == ["pgd 0.100", "square 0.100"]
    assert main(words) == 130
    assert ran[2:] == ["pgd 0.050", "square 0.050", "pgd-targeted 0.050", "square 0.100", "pgd-targeted 0.100"]
    stop("nothing")
    ran.clear()
    assert main(words) == 0
    assert ran == ["pgd-targeted 0.100"]
    assert len(files(run)) == 2 and "Reused finished attacks: pgd, square" in capsys.readouterr().out
    whole = evaluate_run(Path("other"), attacks=made(*WHOLE), eps=0.1, limit=30, device="cpu")
    (pieces,) = [record for record in evaluation.read_all(run) if record.eps == 0.1]
    assert pieces.summary() == whole.summary()
    assert pieces.examples is not None and whole.examples is not None
    assert np.array_equal(pieces.examples.adversarial, whole.examples.adversarial)


WHOLE = "pgd(steps=2, restarts=1)", BRIEF, "pgd-targeted(steps=2)"


def made(*texts: str) -> list[Any]:
    return [ATTACKS.read(text, "attack") for text in texts]


def test_an_interrupted_attack_goes_on_with_the_batch_that_was_cut(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perturb, sizes = SquareAttack.perturb, list[int]()

    def second_time(attack: SquareAttack, x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return perturb(attack, x, y)

    monkeypatch.setattr(SquareAttack, "perturb", second_time)
    words = [*QUICK, "--attacks", BRIEF, "--batch-size", "10"]
    assert main(["eval", str(run), *words]) == 130
    assert len(list((run / "evaluations" / "unfinished").rglob("square-*.npz"))) == 1
    assert main(["eval", str(run), *words]) == 0
    batches = len(sizes) - 1
    assert main(["eval", "other", *words]) == 0
    assert sizes[batches + 1 :] == [sizes[0], *sizes[2 : batches + 1]] and batches > 1
    pieces, whole = (evaluation.read(folder) for folder in (run, Path("other")))
    assert pieces.summary() == whole.summary() and files(run) == files(Path("other"))
    assert np.array_equal(pieces.attacks["square"].robust, whole.attacks["square"].robust)


def test_a_damaged_part_is_done_again(run: Path, ran: list[str], stop: Callable[[str], None]) -> None:
    words = ["eval", str(run), *QUICK, "--attacks", f"pgd,{BRIEF}"]
    stop("square 0.100")
    assert main(words) == 130
    (part,) = (run / "evaluations" / "unfinished").rglob("pgd-*.npz")
    part.write_bytes(part.read_bytes()[:100])
    stop("nothing")
    ran.clear()
    assert main(words) == 0 and ran == ["pgd 0.100", "square 0.100"]


def test_models_from_elsewhere_go_on_too(run: Path, ran: list[str]) -> None:
    torch.save(load_model(run).state_dict(), "w.pt")
    words = ["eval", "--checkpoint-file", "w.pt", "--model", "small-cnn", "--data", "digits", "--out", "mine", *QUICK]
    for eps, expected in (("0.1", ["pgd 0.100"]), ("0.1,0.2", ["pgd 0.200"]), ("0.2", [])):
        ran.clear()
        assert main([*words, "--no-autoattack", "--eps", eps]) == 0
        assert ran == expected
    assert len(files(Path("mine"))) == 2


# --- images ----------------------------------------------------------------------------------------------------------


def test_saved_images_are_those_of_the_attacks_and_judged_after_rounding(
    run: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run), *QUICK, "--attacks", f"pgd,{BRIEF}", "--save-images", "made/images.npz"]
    assert main(words) == 0
    said = capsys.readouterr().out
    (record,), model = evaluation.read_all(run), load_model(run)
    with np.load("made/images.npz", allow_pickle=False) as saved:
        x, y = torch.tensor(saved["clean"]).float() / 255, torch.tensor(saved["labels"])
        assert np.array_equal(saved["labels"], record.labels)
        assert saved["clean"].shape == (30, 1, 8, 8) and saved["clean"].dtype == np.uint8
        for name in ("pgd", "square"):
            images = torch.tensor(saved[f"images_{name}"]).float() / 255
            robust = (model(images).argmax(1) == y).numpy() & record.clean
            assert np.array_equal(saved[f"robust_{name}"], robust)
            assert np.array_equal(record.attacks[name].rounded, robust)
            assert np.array_equal(saved[f"robust_before_{name}"], record.attacks[name].robust)
            # The clean images are 16ths, so both were rounded: by half a grey level each.
            assert (images - x).abs().max() <= 0.1 + 1 / 255 + 1e-6 and (images - x).abs().max() > 0.09
            found = content(run)["rounded"][name]
            broken = record.clean & ~record.attacks[name].robust
            assert found["ra"] == robust.mean() and found["broken"] == broken.sum() > 0
            told = f"({found['stay']} of {found['broken']} successful attacks still succeed"
            assert f"{name} {100 * found['ra']:.1f} % {told}" in said
    ran.clear()
    assert main(words) == 0 and ran == []  # The record and its images are there.
    Path("made/images.npz").unlink()
    assert main(words) == 0 and ran == ["pgd 0.100", "square 0.100"]
    assert content(run)["rounded"].keys() == {"pgd", "square"} and len(files(run)) == 1
    assert main([*words[:-2], "--again"]) == 0 and "rounded" not in content(run)
    assert main(words) == 0  # The file is there, but the record has lost its verdicts on rounded images.
    assert content(run)["rounded"].keys() == {"pgd", "square"} and len(files(run)) == 1


def test_each_budget_has_its_images_and_an_interrupted_one_keeps_them(
    run: Path, ran: list[str], stop: Callable[[str], None]
) -> None:
    words = ["eval", str(run), *QUICK, "--attacks", f"pgd,{BRIEF}", "--eps", "0.05,0.1", "--save-images", "i.npz"]
    stop("square 0.100")
    assert main(words) == 130
    assert Path("i-eps0.05.npz").is_file() and not Path("i-eps0.1.npz").exists() and not Path("i.npz").exists()
    stop("nothing")
    ran.clear()
    assert main(words) == 0 and ran == ["square 0.100"]
    with np.load("i-eps0.1.npz") as pieces:
        names = set(pieces.files)
        kept = pieces["images_pgd"]
    assert names >= {"images_pgd", "images_square", "robust_pgd", "robust_square"}
    assert main(["eval", "other", *words[2:-4], "--eps", "0.1", "--save-images", "whole.npz"]) == 0
    with np.load("whole.npz") as whole:
        assert np.array_equal(whole["images_pgd"], kept)


def test_nearly_equal_budgets_do_not_share_a_file() -> None:
    words = ["run", "--eps", "8/255,0.03137,0.03137254,1,1e-5", "--save-images", "here/i.npz"]
    command = cli_evaluation.read(words)
    paths = [cli_evaluation._image_file(command, eps) for eps in command.eps or ()]
    assert [path and str(path) for path in paths] == [
        f"here/i-eps{eps}.npz" for eps in ("0.03137254901960784", "0.03137", "0.03137254", "1", "1e-05")
    ]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rounding_moves_an_image_by_half_a_grey_level_in_every_value_at_most(norm: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (40, 1, 5, 5), generator=generator).to(torch.uint8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 4))
    y = model(x.float() / 255).argmax(1)
    threat = Threat(norm, {"linf": 0.03, "l2": 0.1, "l1": 0.3}[norm])  # type: ignore[arg-type]
    found = evaluate(model, x, y, threat, attacks=[PGD(5, 1)], save_images=tmp_path / "i.npz")
    with np.load(tmp_path / "i.npz") as saved:
        assert np.array_equal(saved["clean"], x.numpy())
        moved = torch.tensor(saved["images_pgd"]).float() / 255 - x.float() / 255
    half = 0.5 / 255 * {"linf": 1, "l2": 5, "l1": 25}[norm]
    assert threat.eps - 1e-3 < threat.distance(moved).max() <= threat.eps + half + 1e-6
    assert found.summary()["rounded"]["pgd"]["broken"] == int((~found.attacks["pgd"].robust).sum())


def test_images_that_rounding_cannot_explain_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    far = PGD.judge

    def judge(self: PGD, model: Any, x: Tensor, y: Tensor, threat: Threat, judging: Judging) -> Verdicts:
        found = far(self, model, x, y, threat, judging)
        return Verdicts(found.robust, (x + 0.05).clamp(0, 1), found.predicted, found.settings)

    monkeypatch.setattr(PGD, "judge", judge)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 4))
    x, y = torch.rand(5, 1, 5, 5), torch.arange(5) % 4
    with pytest.raises(RuntimeError, match="half a grey level"):
        evaluate(model, x, y, eps=0.03, attacks=[PGD(1, 1)], save_images=tmp_path / "i.npz")


def test_images_of_another_range_are_rounded_in_their_range(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 4))
    x = 4 * torch.rand(20, 1, 5, 5) - 2
    y = model(x).argmax(1)
    evaluate(model, x, y, Threat("linf", 0.2, -2, 2), attacks=[PGD(3, 1)], save_images=tmp_path / "i.npz")
    with np.load(tmp_path / "i.npz") as saved:
        back = torch.tensor(saved["clean"]).float() / 255 * 4 - 2
    assert (back - x).abs().max() <= 2 / 255 + 1e-6


# --- attacks on the command line -------------------------------------------------------------------------------------


def test_a_run_is_attacked_from_another_run_and_from_a_file(run: Path) -> None:
    for source in ("other", "other/last.pt"):
        attacks = f"pgd, transfer(source={source}, steps=2), pgd-targeted(targets=2, steps=2)"
        assert main(["eval", str(run), *QUICK, "--attacks", attacks]) == 0
    found = [record["attacks"]["transfer"] for record in content(run)["records"]]
    assert {settings["source"] for settings in found} == {"other", "other/last.pt"}
    assert {settings["steps"] for settings in found} == {2}
    record = evaluation.read(run)
    assert np.array_equal(record.attacks["transfer"].robust, record.attacks["pgd"].robust)  # The same model.


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on(tmp_path_factory.mktemp("folder"), "cat", "dog", "owl")


def trained_on(place: Path, *names: str) -> Path:
    """Train on a folder of random images of these classes, and return the run."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for name in names:
        (place / "photos" / name).mkdir(parents=True)
        for index in range(12):
            pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "photos" / name / f"{index}.png")
    chosen = {"method": "standard", "model": "small-cnn", "epochs": 1, "device": "cpu", "lr": 0.05, "eps": 0.1}
    adv_train.fit(None, out=place / "run", progress=False, data=f"imagefolder:{place / 'photos'}", **chosen)
    return place / "run"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--attacks", "autoattack(version=plus)"], "'autoattack' has no option `version`"),
        (["--attacks", "autoattack-max"], "`autoattack-plus`"),
        (["--attacks", "square(queries=0)"], "`queries` must be a whole number of at least 1"),
        (["--attacks", "pgd(steps=2"], "name with options"),
        (["--attacks", "pgd,pgd(steps=3)"], "given twice"),
        (["--attacks", "transfer"], "transfer(source=RUN)"),
        (["--attacks", "transfer(source=nowhere)"], "nowhere"),
        (["--eps", "8/255,x"], "`eps` must be a number of at least 0, written like 8/255 or 0.03, but is 'x'"),
        (["--eps", "0.1,-1"], "`eps` must be a number"),
        (["--eps", "0.1,2"], "must not exceed the range"),
        (["--eps", ","], "--eps names no budget"),
        (["--save-images", "images.png"], "does not end in .npz"),
        (["--save-images", "folder.npz"], "it is a folder"),
        (["--save-images", "config.yaml/images.npz"], "Cannot make the folder"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_before_any_work(
    run: Path, ran: list[str], words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.npz").mkdir()
    Path("config.yaml").write_text("")
    assert told in refusal(capsys, "eval", str(run), *QUICK, "--no-autoattack", *words)
    assert ran == [] and not (run / "eval.json").exists()


def test_a_source_of_other_images_is_told_in_one_line(
    run: Path, three_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUICK, "--attacks", f"pgd,transfer(source={three_classes})"]
    assert "was trained on 3 classes, but `digits` has 10" in refusal(capsys, "eval", str(run), *words)
    for attack in ("autoattack-plus", "apgd", "cascade"):
        told = refusal(capsys, "eval", str(three_classes), *QUICK, "--attacks", f"pgd,{attack}")
        assert f"`{attack}` compares 4 logits, but the model has 3 classes: leave it out" in told


def test_a_source_of_other_classes_is_told_in_one_line(
    three_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, alike = trained_on(tmp_path / "other", "ant", "cat", "dog"), tmp_path / "alike"
    shutil.copytree(three_classes, alike)

    def words(source: Path) -> list[str]:
        attacks = f"transfer(source={source}, steps=1)"
        return ["eval", str(three_classes), *QUICK, "--no-autoattack", "--attacks", attacks]

    for source in (other, other / "last.pt"):
        told = refusal(capsys, *words(source))
        assert f"The source `{source}` was trained on other classes" in told
        assert "label 0 is `ant` there, but `cat` in `imagefolder:" in told
    assert main(words(alike)) == 0
    split = json.loads((alike / "split.json").read_text())
    (alike / "split.json").write_text(json.dumps({**split, "classes": ["cat", "owl", "dog"]}))
    assert "label 1 is `owl` there, but `dog` in" in refusal(capsys, *words(alike))
    # Without names, or with those of another run beside the file, only the number of classes is compared.
    (alike / "split.json").unlink()
    assert main(words(alike)) == 0
    shutil.copy(three_classes / "best.pt", other / "copied.pt")
    assert main(words(other / "copied.pt")) == 0


def test_all_attacks_are_listed_and_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attacks"]) == 0
    said = capsys.readouterr().out
    names = [
        "autoattack",
        "autoattack-plus",
        "autoattack-rand",
        "apgd",
        "cascade",
        "square",
        "pgd-targeted",
        "transfer",
    ]
    assert all(f"  {name} " in said for name in ["pgd", *names])
    attacks = tuple(made("pgd(steps=2, restarts=1)", "square(queries=30)", "transfer(source=other, steps=2)"))
    judgement, config = Judgement("best", attacks, 30), RunFolder(run).config()
    words = judgement.command(config, run)
    written = "pgd(steps=2, restarts=1),square(queries=30),transfer(source=other, steps=2)"
    assert words[words.index("--attacks") + 1] == written
    assert main(words) == 0
    record = evaluation.read(run)
    assert judgement.is_in(record, record.about["epoch"], config)
    other = Judgement("best", tuple(made("pgd(steps=2, restarts=1)", "square(queries=31)")), 30)
    assert not other.is_in(record, record.about["epoch"], config)


def test_the_commands_of_the_page_are_those_that_the_program_takes() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    lines = re.findall(r"^adv-train (.*)$", page, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        command, *words = shlex.split(line)
        found = {"eval": cli_evaluation, "compare": compare, "list": listing, "doctor": doctor}[command].read(words)
        found = found[0] if isinstance(found, tuple) else found
        if command in ("eval", "compare"):
            assert named_attacks(found.attacks, steps=1, restarts=1)
    told = {name for name in ATTACKS.names() if f"`{name}`" in page}
    assert told == set(ATTACKS.names())


def test_a_record_that_cannot_be_read_is_told_before_hours_of_work(run: Path, ran: list[str]) -> None:
    (run / "evaluations").mkdir()
    (run / "evaluations" / "old.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="damaged"):
        evaluate_run(run, attacks=[PGD(1, 1)], limit=30, device="cpu")
    assert ran == []

"""Judging a model: what the numbers mean, that they repeat, and that the record survives the disk."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adv_train
from adv_train.attacks import PGD as PGDAttack
from adv_train.data import Dataset, Split
from adv_train.errors import UserError
from adv_train.evaluate import Evaluation, PGDSettings, evaluate, evaluate_model, read, read_all, write
from adv_train.evaluation import collapse, overfitting
from adv_train.evaluation import files as evaluation_files
from adv_train.threat import Threat
from tests.applications.test_checkpoint import Hostile

PGD = PGDSettings(steps=4, restarts=3)


def linear_case(n: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of four classes, on images labelled by it except for the first three."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(n, 1, 3, 4, generator=generator)
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    return model, x, y


@pytest.fixture(scope="module")
def judged() -> Evaluation:
    return evaluate_model(*linear_case(), eps=0.05, pgd=PGD, seed=1)


def test_each_accuracy_is_the_share_of_its_samples(judged: Evaluation) -> None:
    assert judged.n == 40
    assert judged.sa == pytest.approx(37 / 40) and judged.clean.tolist() == [False] * 3 + [True] * 37
    assert set(judged.attacks) == {"pgd", "autoattack"}
    assert judged.ra_pgd == pytest.approx(np.count_nonzero(judged.attacks["pgd"].robust) / 40)
    assert judged.ra_aa == pytest.approx(np.count_nonzero(judged.attacks["autoattack"].robust) / 40)
    assert 0 < judged.ra_aa <= judged.ra_pgd < judged.sa
    assert not any((outcome.robust & ~judged.clean).any() for outcome in judged.attacks.values())


def test_the_same_seed_gives_the_same_outcomes_and_another_seed_other_images(judged: Evaluation) -> None:
    torch.rand(3)  # The global random state plays no part.
    again = evaluate_model(*linear_case(), eps=0.05, pgd=PGD, seed=1)
    assert again.summary() == judged.summary()
    assert np.array_equal(again.attacks["pgd"].robust, judged.attacks["pgd"].robust) and np.array_equal(
        again.attacks["autoattack"].robust, judged.attacks["autoattack"].robust
    )
    few = PGDSettings(steps=1, restarts=1)
    first, second = (evaluate_model(*linear_case(), eps=0.05, pgd=few, autoattack=False, seed=s) for s in (1, 2))
    assert first.examples is not None and second.examples is not None
    assert not np.array_equal(first.examples.adversarial, second.examples.adversarial)


def test_bytes_are_judged_as_the_images_they_stand_for() -> None:
    model, x, y = linear_case()
    bytes_ = (x * 255).round().to(torch.uint8)
    of_bytes = evaluate_model(model, bytes_, y, eps=0.05, pgd=PGD, autoattack=False)
    of_floats = evaluate_model(model, bytes_.float() / 255, y, eps=0.05, pgd=PGD, autoattack=False)
    assert of_bytes.summary() == of_floats.summary()
    assert of_bytes.examples is not None and of_floats.examples is not None
    assert np.array_equal(of_bytes.examples.clean, of_floats.examples.clean)
    assert np.array_equal(of_bytes.examples.adversarial, of_floats.examples.adversarial)


def test_an_attack_that_was_not_run_has_no_figure() -> None:
    model, x, y = linear_case()
    nothing = evaluate_model(model, x, y, eps=0.05, pgd=None, autoattack=False)
    assert nothing.ra_pgd is None and nothing.ra_aa is None and nothing.examples is None
    assert nothing.summary()["attacks"] == {}
    only = evaluate_model(model, x, y, eps=1.0, pgd=None, autoattack=True)
    assert only.ra_pgd is None and only.ra_aa == 0 and only.examples is not None


def test_the_examples_are_the_first_correct_samples_whatever_became_of_them(judged: Evaluation) -> None:
    model, x, y = linear_case()
    shown = judged.examples
    assert shown is not None
    assert np.array_equal(shown.clean, x[3:9].numpy()) and np.array_equal(shown.label, y[3:9].numpy())
    assert np.array_equal(shown.before, shown.label)
    assert np.array_equal(shown.after, model(torch.tensor(shown.adversarial)).argmax(1).numpy())
    assert np.array_equal(shown.after == shown.label, judged.attacks["pgd"].robust[3:9])
    assert np.abs(shown.adversarial - shown.clean).max() <= 0.05 + 1e-6


def test_more_examples_than_correct_samples_fill_up_with_the_others() -> None:
    model, x, y = linear_case(n=5)
    few = evaluate_model(model, x, y, eps=0.05, pgd=PGD, autoattack=False, examples=9)
    assert few.examples is not None
    assert np.array_equal(few.examples.label, y[[3, 4, 0, 1, 2]].numpy())
    assert evaluate_model(model, x, y, eps=0.05, pgd=PGD, autoattack=False, examples=0).examples is None


def test_a_model_in_train_mode_is_judged_in_eval_mode_and_comes_back_in_train_mode() -> None:
    linear, x, y = linear_case()
    model = nn.Sequential(linear, nn.Dropout(0.9)).train()
    linear.eval()
    judged = evaluate_model(model, x, y, eps=0.05, pgd=PGD, autoattack=False)
    assert judged.clean.tolist() == [False] * 3 + [True] * 37
    assert judged.examples is not None
    assert np.array_equal(judged.examples.after == judged.examples.label, judged.attacks["pgd"].robust[3:9])
    assert model.training and model[1].training and not linear.training


def test_the_record_says_how_hard_the_attacks_tried(judged: Evaluation) -> None:
    summary = judged.summary()
    assert {"sa", "ra_pgd", "ra_aa", "n", "eps", "seed", "attacks"} <= summary.keys()
    assert summary["attacks"]["pgd"] == {"steps": 4, "restarts": 3, "step": 0.0125, "loss": "cross-entropy"}
    assert summary["attacks"]["autoattack"]["version"] == "standard"


def test_each_class_has_its_accuracies_and_each_sample_its_predictions(judged: Evaluation) -> None:
    model, x, y = linear_case()
    assert np.array_equal(judged.labels, y.numpy()) and np.array_equal(judged.predicted, model(x).argmax(1).numpy())
    for outcome in judged.attacks.values():
        assert outcome.predicted is not None and np.array_equal(outcome.predicted == y.numpy(), outcome.robust)
    rows = judged.per_class()
    assert sum(row["n"] for row in rows) == 40 and [row["name"] for row in rows] == ["0", "1", "2", "3"]
    for figure, expected in ((lambda r: r["sa"], judged.sa), (lambda r: r["ra"]["pgd"], judged.ra_pgd)):
        assert sum(row["n"] * figure(row) for row in rows if row["n"]) / 40 == pytest.approx(expected)


def test_a_constant_classifier_does_not_pass_as_robust() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, -1.0]).expand(len(x), 3) + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = torch.rand(100, 1, 3, 4), torch.arange(100) // 90  # Nine in ten images are of class 0.
    with pytest.warns(RuntimeWarning) as caught:
        found = evaluate_model(Constant(), x, y, eps=0.1, pgd=PGD, autoattack=False, class_names=["a", "b", "c"])
    assert {str(warning.message).partition(":")[0] for warning in caught} == {
        "Collapsed predictions",
        "Masked gradients",
    }
    assert len(found.warnings) == 2 and found.summary()["warnings"] == list(found.warnings)
    assert found.ra_pgd == 0.9
    assert [(row["name"], row["sa"], row["ra"]["pgd"]) for row in found.per_class()] == [
        ("a", 1.0, 1.0),
        ("b", 0.0, 0.0),
        ("c", None, None),
    ]


@pytest.mark.parametrize(
    ("predicted", "collapsed"),
    [
        (np.arange(100) % 10, False),
        (np.zeros(100), True),
        (np.full(100, -1), True),
        (np.arange(100) % 5, True),
        (np.arange(100) % 6, False),
        (np.where(np.arange(100) < 96, 0, np.arange(100) % 10), True),
    ],
)
def test_predictions_collapse_when_half_of_the_classes_are_missing(
    predicted: np.ndarray[Any, Any], collapsed: bool
) -> None:
    assert (collapse(np.arange(100) % 10, predicted.astype(np.int64)) is not None) == collapsed


def test_few_samples_do_not_tell_of_a_collapse() -> None:
    assert collapse(np.arange(10), np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])) is None
    assert collapse(np.zeros(50, dtype=np.int64), np.zeros(50, dtype=np.int64)) is None


@pytest.mark.parametrize(
    ("accuracies", "epochs"),
    [
        ([(0.5, 0.3), (0.6, 0.4), (0.7, 0.19)], (2, 3)),
        ([(0.5, 0.4), (0.7, 0.1), (0.8, 0.5)], (1, 2)),  # it may recover
        ([(0.5, 0.4), (0.41, 0.1)], (1, 2)),
        ([(0.5, 0.4), (0.39, 0.1)], None),  # the clean accuracy went too
        ([(0.5, 0.4), (0.6, 0.2)], None),
        ([(0.5, 0.19), (0.6, 0.09)], None),  # so little may be chance
        ([(0.5, 0.0), (0.6, 0.0)], None),
        ([], None),
    ],
)
def test_training_has_overfitted_when_half_of_the_robust_accuracy_goes_and_the_clean_one_stays(
    accuracies: list[tuple[float, float]], epochs: tuple[int, int] | None
) -> None:
    said = overfitting([{"epoch": n, "val_sa": sa, "val_ra": ra} for n, (sa, ra) in enumerate(accuracies, 1)])
    if epochs is None:
        assert said is None
    else:
        assert said is not None and all(f"after epoch {epoch}" in said for epoch in epochs)


# --- any model, any images -------------------------------------------------------------------------------------------


def test_the_module_and_the_function_share_a_name() -> None:
    model, x, y = linear_case()
    expected = evaluate_model(model, x, y, eps=0.05, pgd=PGD, autoattack=False).summary()
    for call in (adv_train.evaluate, import_module("adv_train.evaluate")):
        assert call(model, x, y, Threat("linf", 0.05), attacks=[PGD]).summary() == expected


def test_a_data_set_a_split_and_batches_are_judged_as_their_images() -> None:
    model, x, y = linear_case()
    split = Split(x, y)
    dataset = Dataset("d", Split(x[:1], y[:1]), Split(x[:1], y[:1]), split, ("a", "b", "c", "d"), (0.5,), (0.5,), None)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    threat = Threat("linf", 0.05)
    expected = evaluate(model, x, y, threat, attacks=[PGD])
    for images in (split, dataset, loader, [(x[:9], y[:9]), (x[9:], y[9:])]):
        found = evaluate(model, images, threat=threat, attacks=[PGD])
        assert np.array_equal(found.attacks["pgd"].robust, expected.attacks["pgd"].robust)
        assert found.class_names == (("a", "b", "c", "d") if images is dataset else ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat": None}, "`threat`"),
        ({"labels": None}, "`labels` are missing"),
        ({"images": [], "labels": None}, "batches are empty"),
        ({"images": [(torch.rand(2, 1, 3, 4), torch.tensor([0, 1]))]}, "leave `labels` out"),
        ({"attacks": ["pdg"]}, "`pgd`"),
        ({"attacks": ["pgd", PGDAttack(steps=1)]}, "given twice"),
        ({"threat": Threat("l2", 3.5)}, "must not exceed 3.464 in l2"),
        ({"threat": Threat("l2", 0.5), "attacks": ["autoattack"]}, "AutoAttack in l2 needs images of at least 5 x 5"),
        (
            {"threat": Threat("linf", 0.5, -1, 1), "attacks": ["autoattack"]},
            r"AutoAttack attacks images in \[0, 1\] only",
        ),
        ({"class_names": ["a"]}, "`class_names`"),
        ({"files": ["a"]}, "`files`"),
        ({"labels": torch.full((40,), 4)}, "4 logits"),
        ({"labels": torch.full((40,), -1)}, "counted from 0"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(12, 1))}, "at least 2 logits"),
        ({"model": nn.Conv2d(1, 4, 1)}, "must return logits"),
    ],
)
def test_arguments_that_cannot_be_judged_are_named(change: dict[str, Any], message: str) -> None:
    model, x, y = linear_case()
    arguments = {"model": model, "images": x, "labels": y, "threat": Threat("linf", 0.1), **change}
    with pytest.raises(UserError, match=message):
        evaluate(**arguments)


def test_images_of_another_range_are_judged_in_their_range() -> None:
    model, x, y = linear_case()
    layer = model[1]
    shifted = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():  # The same function of u = 4 x - 2.
        shifted[1].weight.copy_(layer.weight / 4)
        shifted[1].bias.copy_(layer.bias + layer.weight.sum(1) / 2)
    found = evaluate(shifted, 4 * x - 2, y, Threat("linf", 0.2, -2, 2), attacks=[PGD])
    expected = evaluate(model, x, y, Threat("linf", 0.05), attacks=[PGD])
    assert found.ra_pgd == pytest.approx(expected.ra_pgd, abs=0.051)
    assert found.examples is not None and found.examples.adversarial.min() >= -2


# --- records ---------------------------------------------------------------------------------------------------------


def records(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "evaluations").iterdir())


def test_what_is_written_is_read_back(judged: Evaluation, tmp_path: Path) -> None:
    full = replace(
        judged,
        about={"checkpoint": "best.pt", "epoch": 3},
        class_names=tuple("abcd"),
        files=tuple(f"{i}.png" for i in range(40)),
        attacks={**judged.attacks, "pgd": replace(judged.attacks["pgd"], warnings=("doubtful",))},
    )
    write(full, tmp_path)
    content = json.loads((tmp_path / "eval.json").read_text())
    assert {name: content[name] for name in full.summary()} == full.summary()
    assert content["checkpoint"] == "best.pt" and content["warnings"] == ["pgd: doubtful"]
    with np.load(tmp_path / "outcomes.npz", allow_pickle=False) as arrays:
        assert arrays["clean"].dtype == np.bool_ and arrays["pgd"].mean() == content["ra_pgd"]
        assert np.array_equal(arrays["labels"], full.labels) and np.array_equal(arrays["predicted"], full.predicted)
        assert np.array_equal(arrays["predicted_pgd"], full.attacks["pgd"].predicted)
        assert arrays["files"].tolist() == list(full.files)
    back = read(tmp_path)
    assert back.summary() == full.summary() and back.files == full.files and back.class_names == full.class_names
    assert back.threat == full.threat
    for name, outcome in full.attacks.items():
        assert np.array_equal(back.attacks[name].robust, outcome.robust)
        assert np.array_equal(back.attacks[name].predicted, outcome.predicted)
    assert back.examples is not None and full.examples is not None
    for name, array in vars(full.examples).items():
        assert np.array_equal(getattr(back.examples, name), array), name
    assert sorted(file.name for file in tmp_path.iterdir()) == ["eval.json", "evaluations", "outcomes.npz"]


def test_figures_that_were_not_measured_are_null_on_disk(tmp_path: Path) -> None:
    model, x, y = linear_case()
    write(evaluate_model(model, x, y, eps=0.05, pgd=None, autoattack=False), tmp_path)
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["ra_pgd"] is None and content["ra_aa"] is None
    back = read(tmp_path)
    assert back.ra_pgd is None and back.ra_aa is None and back.examples is None


def test_no_record_overwrites_another_and_the_fullest_of_the_best_checkpoint_stands_for_the_run(
    judged: Evaluation, tmp_path: Path
) -> None:
    model, x, y = linear_case()
    quick = evaluate(model, x[:20], y[:20], Threat("linf", 0.05), attacks=[PGD])
    stronger = evaluate(model, x, y, Threat("linf", 0.1), attacks=["pgd"])
    best = {"checkpoint": "best.pt", "epoch": 2}
    kept = [
        replace(judged, about=best),
        replace(quick, about=best),
        replace(judged, about={"checkpoint": "last.pt", "epoch": 9}),
        replace(stronger, about=best),
        replace(judged, about=best, seed=2),
        replace(judged, about={**best, "weights": "other"}),
        replace(judged, about=best, clean=judged.clean[::-1].copy()),  # other images, judged alike
    ]
    for count, record in enumerate(kept, start=1):
        write(record, tmp_path, threat=Threat("linf", 0.05))
        assert len(records(tmp_path)) == count
    content = json.loads((tmp_path / "eval.json").read_text())
    assert (content["checkpoint"], content["n"], content["eps"]) == ("best.pt", 40, 0.05)
    assert content["ra_aa"] == judged.ra_aa
    assert [record["file"].partition("/")[2] for record in content["records"]] == records(tmp_path)
    assert sorted(record["n"] for record in content["records"]) == [20, 40, 40, 40, 40, 40, 40]
    write(kept[0], tmp_path, threat=Threat("linf", 0.05))  # The same again is the same record.
    assert len(records(tmp_path)) == 7
    assert read(tmp_path, threat=Threat("linf", 0.1)).summary() == kept[3].summary()
    later = replace(quick, about={"checkpoint": "best.pt", "epoch": 5})
    write(later, tmp_path, threat=Threat("linf", 0.05))  # Training went on: the weights of epoch 2 are gone.
    assert json.loads((tmp_path / "eval.json").read_text())["epoch"] == 5


def first_format(judged: Evaluation, folder: Path) -> None:
    """Write a record as the first version did: one a run, with verdicts alone."""
    summary = {"sa": judged.sa, "ra_pgd": judged.ra_pgd, "ra_aa": judged.ra_aa, "n": 40, "eps": 0.05, "seed": 1}
    settings = {name: dict(outcome.settings) for name, outcome in judged.attacks.items()}
    about = {"checkpoint": "best.pt", "epoch": 4}
    (folder / "eval.json").write_text(json.dumps({**summary, "attacks": settings, **about}))
    assert judged.examples is not None
    shown = {f"example_{name}": array for name, array in vars(judged.examples).items()}
    verdicts = {name: outcome.robust for name, outcome in judged.attacks.items()}
    np.savez_compressed(folder / "outcomes.npz", clean=judged.clean, **verdicts, **shown)


def test_a_record_of_the_first_format_is_read_and_kept(judged: Evaluation, tmp_path: Path) -> None:
    first_format(judged, tmp_path)
    old = read(tmp_path)
    assert (old.sa, old.ra_pgd, old.ra_aa, old.about["epoch"]) == (judged.sa, judged.ra_pgd, judged.ra_aa, 4)
    assert old.labels is None and old.per_class() == [] and old.warnings == ()
    model, x, y = linear_case()
    quick = evaluate(model, x[:20], y[:20], Threat("linf", 0.05), attacks=[PGD])
    write(replace(quick, about={"checkpoint": "best.pt", "epoch": 4}), tmp_path)
    both = read_all(tmp_path)
    assert sorted(record.n for record in both) == [20, 40]
    assert read(tmp_path).summary() == old.summary()
    assert read(tmp_path).examples is not None


def test_a_disk_that_is_full_leaves_the_earlier_records(
    judged: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(judged, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(path: Path, content: bytes) -> None:
        raise UserError(f"Cannot write `{path}`: No space left on device.")

    monkeypatch.setattr(evaluation_files, "replace_file", full)
    with pytest.raises(UserError, match="No space left"):
        write(replace(judged, seed=99), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_folder_that_is_not_there_is_told_in_one_line(judged: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot write"):
        write(judged, tmp_path / "missing")
    with pytest.raises(UserError, match="has not been evaluated"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("eval.json", b"{"),
        ("eval.json", b"[]"),
        ("eval.json", b"{}"),
        ("outcomes.npz", b""),
        ("outcomes.npz", b"PK not an archive"),
    ],
)
def test_a_damaged_record_of_the_first_format_is_refused(
    judged: Evaluation, tmp_path: Path, file: str, content: bytes
) -> None:
    first_format(judged, tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path)


def test_files_of_two_evaluations_of_the_first_format_are_told_apart(judged: Evaluation, tmp_path: Path) -> None:
    first_format(judged, tmp_path)
    np.savez(tmp_path / "outcomes.npz", clean=judged.clean[:20])
    with pytest.raises(UserError, match="do not belong together"):
        read(tmp_path)


def test_a_damaged_record_is_named_and_one_of_a_newer_version_too(judged: Evaluation, tmp_path: Path) -> None:
    path = write(judged, tmp_path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{re.escape(path.name)}.*damaged"):
            read(tmp_path)
    np.savez(path, record=np.array(json.dumps({"format": 3})))
    with pytest.raises(UserError, match="format 3"):
        read(tmp_path)
    (tmp_path / "eval.json").write_text("{")  # It only lists the records.
    path.write_bytes(whole)
    assert read(tmp_path).summary() == judged.summary()
    write(judged, tmp_path)
    assert json.loads((tmp_path / "eval.json").read_text())["n"] == 40


def test_a_hostile_pickle_in_a_record_is_not_loaded(judged: Evaluation, tmp_path: Path) -> None:
    path = write(judged, tmp_path)
    np.savez(path, clean=np.array([Hostile(tmp_path / "ran")], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_samples_that_cannot_be_judged_are_refused() -> None:
    model, x, y = linear_case()
    with pytest.raises(UserError, match=r"in \[0, 1\]"):
        evaluate_model(model, x * 255, y, eps=0.05, pgd=None, autoattack=False)


def test_a_budget_stands_for_the_threat() -> None:
    x, y = torch.rand(20, 4, 1, 1), torch.arange(20) % 4
    model = nn.Flatten()  # the class of the largest pixel
    by_threat = evaluate(model, x, y, Threat("linf", 0.1), attacks=[PGDAttack(steps=2, restarts=1)])
    by_eps = evaluate(model, x, y, eps=0.1, norm="linf", attacks=[PGDAttack(steps=2, restarts=1)])
    assert by_eps.threat == by_threat.threat and by_eps.ra_pgd == by_threat.ra_pgd
    for said in ({}, {"threat": Threat("linf", 0.1), "eps": 0.1}):
        with pytest.raises(UserError, match="by `threat` or by `eps`"):
            evaluate(model, x, y, **said)  # type: ignore[arg-type]

"""Judging a model: what the numbers mean, that they repeat, and that the record survives the disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adv_train import evaluation as evaluation_module
from adv_train.errors import UserError
from adv_train.evaluate import Evaluation, PGDSettings, evaluate_model, read, write

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
    assert judged.pgd is not None and judged.autoattack is not None
    assert judged.ra_pgd == pytest.approx(np.count_nonzero(judged.pgd) / 40)
    assert judged.ra_aa == pytest.approx(np.count_nonzero(judged.autoattack) / 40)
    assert 0 < judged.ra_aa <= judged.ra_pgd < judged.sa


def test_no_sample_is_robust_that_is_not_correct(judged: Evaluation) -> None:
    assert judged.pgd is not None and judged.autoattack is not None
    assert not (judged.pgd & ~judged.clean).any()
    assert not (judged.autoattack & ~judged.clean).any()


def test_the_same_seed_gives_the_same_outcomes_and_another_seed_other_images(judged: Evaluation) -> None:
    torch.rand(3)  # The global random state plays no part.
    again = evaluate_model(*linear_case(), eps=0.05, pgd=PGD, seed=1)
    assert again.summary() == judged.summary()
    assert np.array_equal(again.pgd, judged.pgd) and np.array_equal(again.autoattack, judged.autoattack)
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
    assert shown is not None and judged.pgd is not None
    assert np.array_equal(shown.clean, x[3:9].numpy()) and np.array_equal(shown.label, y[3:9].numpy())
    assert np.array_equal(shown.before, shown.label)
    assert np.array_equal(shown.after, model(torch.tensor(shown.adversarial)).argmax(1).numpy())
    assert np.array_equal(shown.after == shown.label, judged.pgd[3:9])
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
    assert judged.examples is not None and judged.pgd is not None
    assert np.array_equal(judged.examples.after == judged.examples.label, judged.pgd[3:9])
    assert model.training and model[1].training and not linear.training


def test_the_record_says_how_hard_the_attacks_tried(judged: Evaluation) -> None:
    summary = judged.summary()
    assert {"sa", "ra_pgd", "ra_aa", "n", "eps", "seed", "attacks"} <= summary.keys()
    assert summary["attacks"]["pgd"] == {"steps": 4, "restarts": 3, "step": 0.0125, "loss": "cross-entropy"}
    assert summary["attacks"]["autoattack"]["version"] == "standard"


def test_what_is_written_is_read_back(judged: Evaluation, tmp_path: Path) -> None:
    write(judged, tmp_path, about={"checkpoint": "best.pt", "split": "test"})
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["checkpoint"] == "best.pt" and content["split"] == "test"
    assert {name: content[name] for name in judged.summary()} == judged.summary()
    with np.load(tmp_path / "outcomes.npz", allow_pickle=False) as arrays:
        assert arrays["clean"].dtype == np.bool_ and arrays["pgd"].mean() == content["ra_pgd"]
        assert arrays["autoattack"].mean() == content["ra_aa"]
    back = read(tmp_path)
    assert back.summary() == judged.summary()
    assert np.array_equal(back.clean, judged.clean) and np.array_equal(back.pgd, judged.pgd)
    assert back.examples is not None and judged.examples is not None
    for name, array in vars(judged.examples).items():
        assert np.array_equal(getattr(back.examples, name), array), name
    assert sorted(file.name for file in tmp_path.iterdir()) == ["eval.json", "outcomes.npz"]


def test_figures_that_were_not_measured_are_null_on_disk(tmp_path: Path) -> None:
    model, x, y = linear_case()
    write(evaluate_model(model, x, y, eps=0.05, pgd=None, autoattack=False), tmp_path)
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["ra_pgd"] is None and content["ra_aa"] is None
    back = read(tmp_path)
    assert back.ra_pgd is None and back.autoattack is None and back.examples is None


def test_a_disk_that_is_full_leaves_the_earlier_record(
    judged: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(judged, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(path: Path, content: bytes) -> None:
        raise UserError(f"Cannot write `{path}`: No space left on device.")

    monkeypatch.setattr(evaluation_module, "replace_file", full)
    with pytest.raises(UserError, match="No space left"):
        write(replace(judged, seed=99), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


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
def test_a_damaged_record_is_refused(judged: Evaluation, tmp_path: Path, file: str, content: bytes) -> None:
    write(judged, tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path)


def test_a_hostile_pickle_in_the_outcomes_is_not_loaded(judged: Evaluation, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    write(judged, tmp_path)
    np.savez(tmp_path / "outcomes.npz", clean=np.array([Hostile()], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_files_of_two_evaluations_are_told_apart(judged: Evaluation, tmp_path: Path) -> None:
    write(judged, tmp_path)
    kept = (tmp_path / "eval.json").read_bytes()
    write(evaluate_model(*linear_case(n=20), eps=0.05, pgd=PGD, autoattack=False), tmp_path)
    (tmp_path / "eval.json").write_bytes(kept)
    with pytest.raises(UserError, match="do not belong together"):
        read(tmp_path)


def test_samples_that_cannot_be_judged_are_refused() -> None:
    model, x, y = linear_case()
    with pytest.raises(UserError, match=r"in \[0, 1\]"):
        evaluate_model(model, x * 255, y, eps=0.05, pgd=None, autoattack=False)

"""Mixup: which images are blended, what the methods make of them, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train import checkpoint
from adv_train.cli import main
from adv_train.data import Augment, Batch, Mixture, Mixup, Split, batches, epoch_generator
from adv_train.errors import UserError
from adv_train.methods import METHODS, Step
from adv_train.methods.fast_bat import FastBAT
from adv_train.methods.trades import TRADES
from adv_train.objectives import Objective, Reduction, reduced
from adv_train.ranks import Ranks
from adv_train.threat import Threat
from adv_train.train import fit
from tests.applications.normed import CLASSES, EPS, case, cut, slope_at
from tests.applications.test_resume import Stopped, assert_same_run, config, stop_at_write

MIXING = [name for name in METHODS.names() if METHODS.find(name).mixes]  # type: ignore[attr-defined]
#: They use labels outside their objectives, or remember perturbations of single images.
OTHERS = {"aaer", "aaer-rs", "atas", "beta", "fgsm-pgi", "learned-n-fgsm", "liet"}


def mixed_case(seed: int, share: float) -> tuple[nn.Module, Batch, Tensor]:
    """A model, a batch of mixed images, and their labels as probabilities."""
    model, x, y = case(seed)
    weight, other = torch.tensor(share, dtype=torch.float64), (y + torch.tensor([1, 2, 3, 0, 1])) % CLASSES
    own, others = (F.one_hot(labels, CLASSES).double() for labels in (y, other))
    mixture = Mixture(other, weight)
    return model, Batch(x, y, torch.arange(len(y)), mixture=mixture), share * own + (1 - share) * others


def take(method: Any, model: nn.Module, batch: Batch) -> Step:
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
    step: Step = method(copied, dict(copied.named_parameters()), batch, Threat("linf", EPS), generator=generator)
    return step


def assert_equal(found: Step, expected: Step, tolerance: float) -> None:
    assert (found.delta - expected.delta).abs().max() <= tolerance
    assert abs(float(found.loss - expected.loss)) <= tolerance * max(1.0, float(expected.loss))
    for name, value in expected.grads.items():
        assert (found.grads[name] - value).abs().max() <= tolerance * max(1.0, float(value.abs().max())), name


# --- the images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [None, Augment(), Augment(rotation=10.0)])
def test_each_image_is_blended_with_one_of_its_batch_and_all_else_is_as_without(augment: Augment | None) -> None:
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(50))
    plain = list(batches(split, 7, generator=epoch_generator(3, 4), augment=augment))
    mixed = list(batches(split, 7, generator=epoch_generator(3, 4), augment=augment, mixup=Mixup(0.7, 3, 4)))
    shares, moved = [], 0
    for without, found in zip(plain, mixed, strict=True):
        assert found.mixture is not None and without.mixture is None
        assert torch.equal(found.y, without.y) and torch.equal(found.index, without.index)
        assert all(
            a is b is None or torch.equal(a, b)
            for a, b in zip(vars(found.motion).values(), vars(without.motion).values(), strict=True)
        )
        partners = [without.y.tolist().index(label) for label in found.mixture.y.tolist()]
        assert sorted(partners) == list(range(len(without.y)))
        share = float(found.mixture.share)
        expected = share * without.x.double() + (1 - share) * without.x[partners].double()
        assert (found.x - expected).abs().max() <= 1e-6 and found.x.dtype == torch.float32 and found.x.is_contiguous()
        shares.append(share)
        moved += sum(place != partner for place, partner in enumerate(partners))
    assert all(0 <= share <= 1 for share in shares) and len(set(shares)) == len(shares) and moved > 30


def test_two_ranks_hold_the_rows_of_the_batches_of_one_process() -> None:
    images = torch.randint(256, (48, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split, augment = Split(images, torch.arange(48)), Augment(rotation=10.0)

    def drawn(ranks: Ranks) -> list[Batch]:
        generator = epoch_generator(3, 4)
        return list(batches(split, 7, generator=generator, augment=augment, ranks=ranks, mixup=Mixup(0.7, 3, 4)))

    one, *two = (drawn(ranks) for ranks in (Ranks(0, 1), Ranks(0, 2), Ranks(1, 2)))
    assert [len(batch.y) for batch in one] == [7] * 6 + [6]
    for rank, parts in enumerate(two):
        for whole, part in zip(one, parts, strict=True):
            rows = slice(rank, None, 2)
            assert whole.mixture is not None and part.mixture is not None
            assert torch.equal(part.x, whole.x[rows]) and torch.equal(part.mixture.y, whole.mixture.y[rows])
            assert torch.equal(part.mixture.share, whole.mixture.share)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_follow_the_beta_distribution_and_any_image_may_be_the_partner(alpha: float) -> None:
    drawn = Mixup(alpha, 0, 0).draw([4] * 4000, "cpu")
    shares = np.array([float(share) for _, share in drawn])
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    counts = np.zeros((4, 4))
    for partners, _ in drawn:
        counts[np.arange(4), partners.numpy()] += 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 40  # chi square with 9 degrees of freedom


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 100.0])
def test_shares_of_extreme_distributions_are_shares(alpha: float) -> None:
    shares = torch.stack([share for _, share in Mixup(alpha, 0, 0).draw([2] * 1000, "cpu")])
    assert shares.isfinite().all() and (shares >= 0).all() and (shares <= 1).all()
    assert 0.4 < float(shares.mean()) < 0.6


def test_seeds_and_epochs_do_not_repeat_each_other() -> None:
    drawn = [float(Mixup(1.0, seed, epoch).draw([2], "cpu")[0][1]) for seed in range(5) for epoch in range(5)]
    assert len(set(drawn)) == len(drawn)


# --- the losses -------------------------------------------------------------------------------------------------------


def test_every_method_either_mixes_or_says_that_it_cannot() -> None:
    assert {*MIXING} == {*METHODS.names()} - OTHERS
    for name in METHODS.names():
        if name in MIXING:
            assert config(method=name, mixup="0.4").data.mixup == 0.4
        else:
            with pytest.raises(UserError, match=f"`mixup` must be 0 for {name}, .*standard") as error:
                config(method=name, mixup=0.4)
            assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Soft(Objective):
    """Cross-entropy with labels that are probabilities, whatever labels it is given."""

    labels: Tensor

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        labels = self.labels.repeat(len(logits) // len(self.labels), 1)  # elle looks at three points of each image
        return reduced(-(labels * logits.log_softmax(1)).sum(1), reduction)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", MIXING)
def test_cross_entropy_of_mixed_images_is_that_of_mixed_labels(name: str, share: float) -> None:
    model, batch, labels = mixed_case(1, share)
    options = METHODS.options(name).keys() & {"attack_loss", "train_loss"}
    found = take(METHODS.create(name, **dict.fromkeys(options, "cross-entropy")), model, batch)
    soft = Soft(labels)
    by_labels = take(METHODS.create(name, **dict.fromkeys(options, soft)), model, replace(batch, mixture=None))
    assert_equal(found, by_labels, 1e-10)


def test_fast_bat_and_its_implicit_part_by_hand() -> None:
    model, batch, labels = mixed_case(2, 0.3)
    step, curvature = 0.5, 2.0
    found = take(FastBAT(step=step, curvature=curvature, start="zero"), model, batch)

    def total(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="sum")

    anchor = cut(batch.x, step * slope_at(model, batch.x, torch.zeros_like(batch.x), total))
    point = anchor.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(model(batch.x + point)), point, create_graph=True)
    delta = cut(batch.x, anchor + step * slope.detach()).requires_grad_()
    params = list(model.parameters())
    loss = F.cross_entropy(model(batch.x + delta), labels)
    *direct, outer = torch.autograd.grad(loss, [*params, delta])
    free = (delta.abs() < EPS - 1e-7) & (batch.x + delta > 1e-7) & (batch.x + delta < 1 - 1e-7)
    implicit = torch.autograd.grad(
        (slope * free * outer / curvature).sum(), params, allow_unused=True, materialize_grads=True
    )
    assert (found.delta - delta).abs().max() <= 1e-12 and float(found.implicit_share) > 1e-4
    for (name, _), first, second in zip(model.named_parameters(), direct, implicit, strict=True):
        assert (found.grads[name] - first - second).abs().max() <= 1e-10, name


def test_trades_mixes_the_clean_loss_and_not_the_divergence() -> None:
    model, batch, labels = mixed_case(3, 0.6)
    found = take(TRADES(steps=1, step=0.03, attack_mode="train"), model, batch)

    noise = 0.001 * torch.randn(batch.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        fixed = copy.deepcopy(model)(batch.x).softmax(1)
    start = cut(batch.x, noise)
    ascent = slope_at(model, batch.x, start, lambda logits: -(fixed * logits.log_softmax(1)).sum())
    delta = cut(batch.x, start + 0.03 * ascent.sign())
    clean, logits = model(batch.x), model(batch.x + delta)
    p = clean.softmax(1)
    apart = (p * (clean.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    loss = F.cross_entropy(clean, labels) + 6 * apart
    truth = torch.autograd.grad(loss, list(model.parameters()))
    assert (found.delta - delta).abs().max() <= 1e-12
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-12)
    for (name, _), value in zip(model.named_parameters(), truth, strict=True):
        assert (found.grads[name] - value).abs().max() <= 1e-10, name


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_does_not_mix_unless_it_is_told_to(tmp_path: Path) -> None:
    runs = {
        name: fit(config(epochs=2, **chosen), tmp_path / name, progress=False).run
        for name, chosen in {"plain": {}, "zero": {"mixup": "0"}, "mixed": {"mixup": "2/5"}}.items()
    }
    assert runs["plain"].config() == runs["zero"].config() and runs["plain"].config().data.mixup == 0
    assert runs["plain"].metrics() == runs["zero"].metrics()
    for record, other in zip(runs["plain"].metrics(), runs["mixed"].metrics(), strict=True):
        assert record["loss"] != other["loss"] and record["lr"] == other["lr"]
    assert runs["mixed"].config().data.mixup == 0.4
    with pytest.raises(UserError, match=r"differs in mixup \(0.2, not 0.4\)"):
        fit(config(epochs=2, mixup=0.2), tmp_path / "mixed", progress=False)


@pytest.mark.parametrize("method", ["fast-bat", "free-at"])
def test_a_run_that_was_stopped_mixes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    chosen = config(method=method, epochs=2, mixup=0.4, augment="flip-crop")
    fit(chosen, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        stop_at_write(patch, 4, after=True)
        with pytest.raises(Stopped):
            fit(chosen, tmp_path / "run", progress=False)
    fit(chosen, tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_repeats_of_a_batch_see_one_mixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[Tensor, float]] = []
    taken = METHODS.find("free-at").__call__  # type: ignore[operator]

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        (batch,) = (part for part in given if isinstance(part, Batch))
        assert batch.mixture is not None
        seen.append((batch.x, float(batch.mixture.share)))
        return taken(self, *given, **named)

    monkeypatch.setattr(METHODS.find("free-at"), "__call__", watched)
    fit(config(method="free-at", repeats=2, epochs=1, mixup=1), tmp_path / "run", progress=False)
    assert len(seen) == 6
    alike = [torch.equal(one[0], other[0]) and one[1] == other[1] for one, other in pairwise(seen)]
    assert alike == [True, False, True, False, True]


def test_the_command_line_takes_and_explains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--data", "digits", "--method", "fast-at", "--train-limit", "40", "--epochs", "1", "--quiet"]
    assert main([*words, "--validation-steps", "1", "--device", "cpu", "--mixup", "0.4", "--out", "run"]) == 0
    assert checkpoint.load(Path("run/last.pt")).config.data.mixup == 0.4
    capsys.readouterr()
    for value in ("-0.1", "nan", "inf", "101", "much", ""):
        assert main([*words, "--mixup", value, "--out", "other"]) == 2
        said = capsys.readouterr().err
        assert "`mixup` must be a number between 0 and 100" in said and said.count("\n") == 1
    assert main([*words[:3], "--method", "liet", "--mixup", "0.4", "--out", "other"]) == 2
    assert "`mixup` must be 0 for liet" in capsys.readouterr().err and not Path("other").exists()
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert "--mixup " in capsys.readouterr().out

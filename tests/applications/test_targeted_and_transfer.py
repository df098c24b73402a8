"""Targeted PGD and images of another model, against closed forms and hand-written loops."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import adv_train
from adv_train.attacks import ATTACKS, PGD, TargetedPGD, Transfer
from adv_train.attacks.transfer import Source
from adv_train.errors import UserError
from adv_train.evaluate import evaluate
from adv_train.threat import Norm, Threat
from tests.applications.test_attack_norms import wide_linear_case
from tests.applications.test_attack_norms import worst_margins as worst_in_norm
from tests.applications.test_attacks import Network, linear_case, network_case, random, worst_margins

LINF = Threat("linf", 0.1)


# --- targeted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_all_targets_find_the_exact_robust_accuracy_of_a_linear_model(classes: int) -> None:
    model, x, y = linear_case(0, classes=classes, n=80, dtype=torch.float64)
    found = TargetedPGD(targets=None, steps=10)(model, x, y, Threat("linf", 0.06), seed=0)
    margins = worst_margins(model, x, y, 0.06)
    assert torch.equal(found.robust, margins > 0) and found.robust.any() and not found.robust.all()
    assert found.settings["targets"] == "all"


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.25), ("l1", 0.6)])
def test_all_targets_find_it_in_other_norms(norm: Norm, eps: float) -> None:
    model, x, y = wide_linear_case(0, classes=4, n=40)
    found = TargetedPGD(targets=3, steps=60)(model, x, y, Threat(norm, eps), seed=0)
    margins = worst_in_norm(model, x, y, norm, eps)
    clear = margins.abs() > 0.02
    assert torch.equal(found.robust[clear], margins[clear] > 0)
    assert found.robust.any() and not found.robust.all()


def test_targets_come_in_the_order_of_their_probability_as_in_a_loop_that_drops_nothing() -> None:
    model, x, y = network_case(120)
    judge, generator, eps, steps = copy.deepcopy(model).eval(), random(5), 0.3, 5
    clean = judge(x).detach()
    ranks = clean.argsort(1, descending=True)
    survived = [clean.argmax(1) == y]
    for rank in range(2):
        # The label leaves the order; what is left are wrong classes, the most probable one first.
        targets = torch.stack([row[row != label][rank] for row, label in zip(ranks, y, strict=True)])
        for _ in range(2):
            delta = (torch.rand(x.shape, dtype=x.dtype, generator=generator) * 2 - 1) * eps
            delta = torch.min(torch.max(delta, -x), 1 - x)
            for _ in range(steps):
                delta.requires_grad_()
                logits = judge(x + delta)
                climbed = (logits[range(len(x)), targets] - logits[range(len(x)), y]).sum()
                (gradient,) = torch.autograd.grad(climbed, delta)
                delta = (delta.detach() + eps / 4 * gradient.sign()).clamp(-eps, eps)
                delta = torch.min(torch.max(delta, -x), 1 - x)
            survived.append(judge(x + delta).argmax(1) == y)
    found = TargetedPGD(targets=2, steps=steps, restarts=2)(model, x, y, Threat("linf", 0.3), seed=5, batch_size=7)
    assert torch.equal(found.robust, torch.stack(survived).all(0)) and found.robust.any()
    one = TargetedPGD(targets=1, steps=steps, restarts=2)(model, x, y, Threat("linf", 0.3), seed=5)
    assert torch.equal(one.robust, torch.stack(survived[:3]).all(0))
    assert not torch.equal(one.robust, found.robust)
    assert torch.equal(judge(found.images).argmax(1) == y, found.robust)


def test_a_sample_may_fall_to_a_later_target() -> None:
    """The class that is nearest in logits is out of reach within the budget; the next one is not."""

    class Blocked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x[:, 0, 0, 0], x[:, 0, 0, 1]
            return torch.stack([0 * a, 0.04 * a - 0.07, b - 0.6], 1)

    x, y = torch.full((4, 1, 1, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    for targets in (1, 2):
        found = TargetedPGD(targets=targets, steps=20)(Blocked(), x, y, Threat("linf", 0.09), seed=0)
        assert found.robust.all()
    # With 0.3 the second target is reached; towards the first the other pixel stays where it started.
    second = TargetedPGD(targets=2, steps=20)(Blocked(), x, y, Threat("linf", 0.3), seed=0)
    assert not second.robust.any() and (second.predicted == 2).all()


def test_more_targets_than_classes_are_all_targets() -> None:
    model, x, y = network_case()
    many, every = (TargetedPGD(targets=t, steps=2)(model, x, y, LINF, seed=0) for t in (9, None))
    assert torch.equal(many.images, every.images)
    assert ATTACKS.read("pgd-targeted(targets=none)", "attack") == TargetedPGD(targets=None)


@pytest.mark.parametrize("bad", [{"targets": 0}, {"steps": 0}, {"restarts": 0}, {"step": 0.0}])
def test_settings_that_are_no_attack_are_refused(bad: dict[str, float]) -> None:
    for attack in ("pgd-targeted", "transfer"):
        if attack == "pgd-targeted" or "targets" not in bad:
            with pytest.raises(UserError, match=f"`{next(iter(bad))}` must be a .*number"):
                ATTACKS.create(attack, **bad)


# --- transfer --------------------------------------------------------------------------------------------------------


def test_images_of_the_model_itself_are_those_of_pgd() -> None:
    model, x, y = network_case()
    for restarts in (1, 3):
        own = PGD(steps=3, restarts=restarts)(model, x, y, LINF, seed=2)
        found = Transfer(source=model, steps=3, restarts=restarts)(model, x, y, LINF, seed=2, batch_size=9)
        assert torch.equal(found.robust, own.robust) and torch.allclose(found.images, own.images, atol=1e-12)
        assert torch.equal(found.predicted, own.predicted)


def test_images_are_made_on_the_source_and_judged_on_the_model() -> None:
    model, x, y = network_case()
    source = Network(7).train()
    found = Transfer(source=source, steps=4)(model, x, y, LINF, seed=2)
    judge, maker = copy.deepcopy(model).eval(), copy.deepcopy(source).eval()
    generator = random(2)
    delta = (torch.rand(x.shape, dtype=x.dtype, generator=generator) * 2 - 1) * 0.1
    delta = torch.min(torch.max(delta, -x), 1 - x)
    for _ in range(4):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(maker(x + delta), y), delta)
        delta = (delta.detach() + 0.025 * gradient.sign()).clamp(-0.1, 0.1)
        delta = torch.min(torch.max(delta, -x), 1 - x)
    expected = (judge(x).argmax(1) == y) & (judge(x + delta).argmax(1) == y)
    assert torch.equal(found.robust, expected) and found.robust.any() and not expected.all()
    assert source.training and all(weight.requires_grad and weight.grad is None for weight in source.parameters())
    assert not any(source.seen)
    own = PGD(steps=4, restarts=1)(model, x, y, LINF, seed=2)
    assert own.robust.sum() < found.robust.sum()


def test_a_transfer_finds_what_a_masked_gradient_hides() -> None:
    model, x, y = linear_case(0, classes=4, n=60, dtype=torch.float32)
    y = model(x).argmax(1)

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model((x * 255).round() / 255)

    with pytest.warns(RuntimeWarning, match="Masked"):
        found = evaluate(Rounded(), x, y, eps=0.1, attacks=[PGD(5, 1), Transfer(source=model, steps=5)])
    bare = evaluate(model, x, y, eps=0.1, attacks=[PGD(5, 1)])
    assert bare.ra_pgd is not None and found.ra_pgd is not None
    assert (
        found.attacks["transfer"].accuracy == pytest.approx(bare.ra_pgd, abs=0.04) and found.ra_pgd > bare.ra_pgd + 0.2
    )
    told = found.attacks["transfer"].settings
    assert told["source"] == "Sequential" and len(told["source_weights"]) == 16
    other, _, _ = linear_case(1, classes=4, n=1, dtype=torch.float32)
    assert Transfer(source=other).settings(LINF, 1)["source_weights"] != told["source_weights"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, r"transfer\(source=RUN\)"),
        ("runs/a", "`runs/a` is not loaded"),
        (nn.Sequential(nn.Flatten(), nn.Linear(13, 4)), "does not take images of 1 x 3 x 4"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), "has 5 classes, but the judged model has 4"),
        (3, "`source` must be a run folder"),
    ],
    ids=["none", "path", "shape", "classes", "number"],
)
def test_a_source_that_cannot_attack_is_refused_before_any_work(source: object, message: str) -> None:
    model, x, y = linear_case(0, classes=4, n=5, dtype=torch.float32)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    with pytest.raises(UserError, match=message):
        evaluate(model, x, y, eps=0.1, attacks=["pgd", Transfer(source=source)])  # type: ignore[arg-type]
    assert set(seen) <= {1}


def test_a_named_source_is_loaded_once_and_a_model_stays() -> None:
    asked: list[str] = []

    def load(run: str) -> nn.Module:
        asked.append(run)
        return nn.Flatten()

    named = ATTACKS.read("transfer(source=runs/a, steps=3)", "attack").bound(load)
    assert isinstance(named, Transfer) and isinstance(named.source, Source)
    assert named.source.model is not None and str(named.source) == "runs/a" and named.steps == 3
    assert named.bound(load) is named and asked == ["runs/a"]
    assert ATTACKS.written(named) == "transfer(source=runs/a, steps=3)" and named.chosen()["source"] == "runs/a"
    assert PGD().bound(load) == PGD()


def test_the_package_does_not_import_the_source_of_a_run_by_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="load_model"):
        adv_train.evaluate(
            nn.Flatten(),
            torch.rand(4, 4, 1, 1),
            torch.arange(4),
            eps=0.1,
            attacks=[f"transfer(source={tmp_path})"],
        )

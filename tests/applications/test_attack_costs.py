"""The estimated cost of an attack is what a model counts while the attack runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from adv_train.attacks import ATTACKS, PGD, Attack, Transfer
from adv_train.threat import Norm, Threat

OPTIONS = {
    "pgd": "pgd(steps=20, restarts=3)",
    "pgd-targeted": "pgd-targeted(targets=2, steps=20, restarts=2)",
    "square": "square(queries=150)",
    "cascade": "cascade(steps=20)",
}
OVERHEAD = 55
"""Passes besides those of the steps: clean accuracy, the package's checks of the model, the last look of each part."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every part of the package."""
    whole = AutoAttack._set_version

    def shorter(attack: AutoAttack, version: str) -> None:
        whole(attack, version)
        attack.apgd.n_restarts, attack.apgd.eot_iter = min(attack.apgd.n_restarts, 2), min(attack.apgd.eot_iter, 3)
        attack.fab.n_restarts, attack.fab.n_iter, attack.square.n_queries = min(attack.fab.n_restarts, 2), 20, 150
        for part in (attack.apgd, attack.apgd_targeted):
            part.n_iter = part.n_iter_orig = 30

    monkeypatch.setattr(AutoAttack, "_set_version", shorter)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 4))


def counted(attack: Attack, judged: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> float:
    """Count the forward and backward passes of each image."""
    passes = [0]

    def back(gradient: Tensor) -> None:
        passes[0] += len(gradient)

    def count(_: nn.Module, given: tuple[Any, ...], logits: Tensor) -> None:
        passes[0] += len(given[0])
        if logits.requires_grad:
            logits.register_hook(back)

    handle = judged.register_forward_hook(count)
    attack(judged, x, y, threat, seed=0)
    handle.remove()
    return passes[0] / len(x)


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("name", ATTACKS.names())
def test_the_cost_is_that_of_an_attack_that_breaks_nothing(name: str, norm: Norm, short: None) -> None:
    judged = model()
    x = torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    y, threat = judged(x).argmax(1), Threat(norm, 1e-6)
    attack = Transfer(source=judged, steps=30, restarts=2) if name == "transfer" else None
    attack = attack or ATTACKS.read(OPTIONS.get(name, name), "attack")
    cost = attack.cost(1.0, 1.0, 4, threat)
    assert cost is not None and cost > 2 * OVERHEAD
    assert cost - 2 <= counted(attack, judged, x, y, threat) <= cost + OVERHEAD


def test_only_images_that_are_left_are_attacked_again() -> None:
    assert PGD(steps=10, restarts=5).cost(0.8, 0.5, 10, Threat("linf", 0.1)) == pytest.approx((0.8 + 4 * 0.5) * 21)
    threat = Threat("linf", 8 / 255)
    # APGD-CE on the images that are right; APGD-T, FAB-T and Square with nine targets on those that it leaves.
    whole, left = ATTACKS.create("autoattack").cost(0.8, 0.5, 10, threat), 9 * (202 + 300) + 5000
    assert whole == pytest.approx(0.8 * 202 + 0.5 * left)
    assert ATTACKS.create("square").cost(0.8, 0.5, 10, threat) == pytest.approx(0.8 * 5000)


def test_an_attack_of_a_user_need_not_know_its_cost() -> None:
    class Own(Attack):
        def judge(self, *_: Any) -> Any:
            raise NotImplementedError

    assert Own().cost(1.0, 1.0, 10, Threat("linf", 0.1)) is None

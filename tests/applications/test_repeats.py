"""The memory of Square's queries: it answers what the classifier would, bit for bit, and leaves random ones alone."""

from __future__ import annotations

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from adv_train.attacks import package
from adv_train.attacks.autoattack import autoattack
from adv_train.attacks.repeats import Repeats, repeats
from adv_train.models import MODELS


class Counted(nn.Module):
    """Counts the batches that it classifies; from batch `random_from` on, the logits are noisy."""

    def __init__(self, model: nn.Module, random_from: float = float("inf")) -> None:
        super().__init__()
        self.model, self.random_from, self.batches = model, random_from, 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        logits: Tensor = self.model(x)
        return logits + torch.rand_like(logits) if self.batches >= self.random_from else logits


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return MODELS.create("small-cnn", 1, 10, 8, [0.0], [1.0]).requires_grad_(False)


def asked(n: int, of: int, batches: int) -> list[Tensor]:
    """Batches of n images, drawn from few different ones."""
    torch.manual_seed(1)
    images = torch.rand(of, 1, 8, 8)
    return [images[torch.randint(of, (n,))] for _ in range(batches)]


def test_repeated_batches_are_answered_from_memory_bit_for_bit(network: nn.Module) -> None:
    model = Counted(network)
    remembered = Repeats(model)
    for batch in asked(20, 30, 200):
        logits = remembered(batch)
        assert torch.equal(logits, network(batch))
        logits.fill_(-torch.inf)  # as Square does to the label's logit: the memory must not notice
    assert 50 < model.batches < 80  # 1,000 known images are compared first


def test_another_size_of_the_batch_empties_the_memory(network: nn.Module) -> None:
    model = Counted(network)
    remembered = Repeats(model)
    for batch in asked(20, 30, 100):
        remembered(batch)
    before = model.batches
    batch = asked(20, 30, 1)[0]
    for images in (batch, batch[:7], batch):
        remembered(images)
    assert model.batches == before + 2


def test_a_classifier_that_changes_its_answer_is_asked_from_then_on(network: nn.Module) -> None:
    model = Counted(network, random_from=20)
    remembered = Repeats(model)
    batches = asked(20, 30, 100)
    for batch in batches:
        remembered(batch)
    assert model.batches == len(batches)


def test_square_makes_the_same_images_with_a_third_of_the_passes(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = AutoAttack._set_version

    def square(attack: AutoAttack, version: str) -> None:
        whole(attack, version)
        attack.attacks_to_run = ["square"]

    monkeypatch.setattr(AutoAttack, "_set_version", square)
    torch.manual_seed(2)
    x = torch.rand(12, 1, 8, 8)
    y = network(x).argmax(1)

    def attacked() -> tuple[Tensor, Tensor, int]:
        model = Counted(network)
        return *autoattack(model, x, y, eps=0.004, seed=3), model.batches

    robust, images, passes = attacked()
    monkeypatch.setattr(package, "repeats", lambda attack, x: False)
    robust_too, images_too, all_passes = attacked()
    assert torch.equal(robust, robust_too) and torch.equal(images, images_too)
    assert robust.any() and all_passes > 5000
    assert passes < all_passes / 3


@pytest.mark.parametrize(
    ("norm", "shape", "expected"),
    [("Linf", (1, 8, 8), True), ("L2", (1, 8, 8), False), ("Linf", (1, 28, 28), False), ("Linf", (3, 32, 32), False)],
)
def test_only_tiny_images_in_linf_are_remembered(norm: str, shape: tuple[int, ...], expected: bool) -> None:
    attack = AutoAttack(lambda x: x, norm=norm, version="standard")
    assert repeats(attack, torch.zeros(2, *shape)) is expected

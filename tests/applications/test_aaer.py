"""The penalty on abnormal examples against its definition in plain torch, and the methods that it is left out of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train import training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods import METHODS
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, assert_same_bits, case

BASES = {"aaer": "n-fgsm", "aaer-rs": "fast-at"}
EPS = 8 / 255


class Waves(nn.Module):
    """A network whose loss rises and falls within the reach of a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(64, 32).double(), nn.Linear(32, 10).double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.sin(150 * self.first(images.flatten(1))))
        return logits


def batch_of(images: int, seed: int = 6) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    _, x, y, start = case(seed, batch=images)
    return Waves(), x, y, (EPS * start).clamp(-x, 1 - x)


@pytest.mark.parametrize("method", list(BASES))
@pytest.mark.parametrize("follow", [False, True])
def test_it_is_the_loss_and_a_penalty_on_the_images_whose_loss_fell(method: str, follow: bool) -> None:
    model, x, y, start = batch_of(12)
    options: dict[str, Any] = {"penalty": 0.7, "fall": 1.3, "variation": 2.0}
    found = training_gradient(model, x, y, method=method, eps=EPS, start=start, follow_fall=follow, **options)
    base = training_gradient(model, x, y, method=BASES[method], eps=EPS, start=start)
    assert torch.equal(found.delta, base.delta)

    before = model(x + start).detach()
    after = model(x + found.delta)
    fell = F.cross_entropy(before, y, reduction="none") - F.cross_entropy(after, y, reduction="none")
    abnormal = [i for i in range(12) if fell[i] > 0]
    normal = [i for i in range(12) if fell[i] <= 0]
    assert abnormal and normal
    moved = ((after - before) ** 2).sum(1)
    excess = moved[abnormal].mean() - moved[normal].mean().detach()
    assert excess > 0
    fall = fell[abnormal].mean() if follow else fell[abnormal].mean().detach()
    loss = F.cross_entropy(after, y) + 0.7 * len(abnormal) / 12 * (1.3 * fall + 2.0 * excess)
    names, params = zip(*model.named_parameters(), strict=True)
    assert_close(found.grads, dict(zip(names, torch.autograd.grad(loss, params), strict=True)))
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert torch.equal(found.logits, after)


@pytest.mark.parametrize("method", list(BASES))
def test_without_abnormal_images_it_is_its_base(method: str) -> None:
    model, x, y, start = case(2)
    small: dict[str, Any] = {"eps": 1e-4, "start": (1e-4 * start).clamp(-x, 1 - x)}
    assert_same_bits(
        training_gradient(model, x, y, method=method, penalty=9.0, **small),
        training_gradient(model, x, y, method=BASES[method], **small),
    )


def test_a_batch_of_abnormal_images_alone_is_not_penalised() -> None:
    model, x, y, _ = batch_of(12)
    found = training_gradient(model, x, y, method="aaer", eps=EPS, start=torch.zeros_like(x))
    before, after = (F.cross_entropy(f, y, reduction="none") for f in (model(x), found.logits))
    fell = before > after
    alone = training_gradient(model, x[fell], y[fell], method="aaer", eps=EPS, start=torch.zeros_like(x[fell]))
    base = training_gradient(model, x[fell], y[fell], method="n-fgsm", eps=EPS, start=torch.zeros_like(x[fell]))
    assert fell.sum() > 1
    assert_same_bits(alone, base)


def test_images_that_vary_less_than_normal_ones_are_not_rewarded() -> None:
    model, x, y, _ = batch_of(12, seed=5)
    given: dict[str, Any] = {"method": "aaer", "eps": EPS, "start": torch.zeros_like(x), "fall": 0.0}
    base = training_gradient(model, x, y, **given, variation=0.0)
    before, after = (F.cross_entropy(logits, y, reduction="none") for logits in (model(x), base.logits))
    assert 0 < (before > after).sum() < 12
    assert_same_bits(training_gradient(model, x, y, **given, variation=9.0), base)


@pytest.mark.parametrize(
    ("method", "levels", "fall", "variation"),
    [
        # The commands of the published code.
        *(("aaer", *row) for row in ((8, 1.5, 0.15), (12, 5.0, 0.55), (16, 8.5, 1.5), (32, 2.75, 0.75))),
        *(("aaer-rs", *row) for row in ((8, 2.5, 1.5), (12, 5.0, 2.75), (16, 7.0, 3.25), (32, 5.75, 1.5))),
        # In between, those of the nearest radius.
        ("aaer", 9.9, 1.5, 0.15),
        ("aaer", 10.1, 5.0, 0.55),
    ],
)
def test_it_has_the_published_coefficients(method: str, levels: float, fall: float, variation: float) -> None:
    model, x, y, _ = batch_of(12)
    given: dict[str, Any] = {"eps": levels / 255, "start": torch.zeros_like(x), "step": EPS}
    default = training_gradient(model, x, y, method=method, **given)
    assert_same_bits(default, training_gradient(model, x, y, method=method, fall=fall, variation=variation, **given))
    other = training_gradient(model, x, y, method=method, fall=fall + 1, variation=variation, **given)
    assert default.loss != other.loss


@pytest.mark.parametrize("method", list(BASES))
def test_it_costs_as_much_as_its_base(method: str) -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(METHODS.create(method), model, batch, threat), 1) == 5.0

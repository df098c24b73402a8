"""Fast-BAT whose attack maximises another loss than training minimises: its gradient, in plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from adv_train import training_gradient
from adv_train.cli import main
from adv_train.errors import UserError
from tests.applications.test_methods import assert_close, case

EPS, STEP, CURVATURE = 0.1, 2.0, 0.5


def cross_entropy(logits: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    return logits.exp().sum(1).log() - logits[torch.arange(len(y)), y]


def margin(logits: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    others = logits[torch.arange(logits.shape[1]) != y[:, None]].view(len(y), -1)
    return others.max(1).values - logits[torch.arange(len(y)), y]


def dlr(logits: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    ordered = logits.sort(1, descending=True).values
    return margin(logits, clean, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def kl(logits: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    p, q = clean.softmax(1), logits.softmax(1)
    return (p * (p.log() - q.log())).sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "dlr": dlr,
    "kl": kl,
    "margin": margin,
}


def network() -> nn.Module:
    """A small network whose training and evaluation modes differ, with statistics that stay."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, momentum=0.0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), norm, nn.SiLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(72, 10),
    ).double()  # fmt: skip
    with torch.no_grad():
        norm.running_mean += 0.3
        norm.running_var *= 2.0
        for parameter in model.parameters():
            parameter *= 2.0
    return model.train()


def by_hand(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, loss: str, mode: str, weight: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradient and the perturbation."""
    names, params = zip(*model.named_parameters(), strict=True)
    low, high = (-x).clamp(min=-EPS), (1 - x).clamp(max=EPS)

    def slope(delta: Tensor, create_graph: bool) -> Tensor:
        delta = delta.detach().requires_grad_()
        model.train(mode == "train")
        total = LOSSES[loss](model(x + delta), model(x), y).sum()
        model.train()
        return torch.autograd.grad(total, delta, create_graph=create_graph)[0]

    anchor = (start + STEP * slope(start, False)).clamp(low, high)
    ascent = slope(anchor, True)
    delta = (anchor + STEP * ascent.detach()).clamp(low, high).requires_grad_()
    value = F.cross_entropy(model(x + delta), y)
    *direct, outer = torch.autograd.grad(value, [*params, delta])
    free = (delta > low + 1e-7) & (delta < high - 1e-7)
    implicit = torch.autograd.grad(
        (ascent * free * outer.detach()).sum(), params, allow_unused=True, materialize_grads=True
    )
    total = [d + weight / CURVATURE * i for d, i in zip(direct, implicit, strict=True)]
    return dict(zip(names, total, strict=True)), delta.detach()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("weight", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_the_gradient_is_the_direct_and_the_weighted_implicit_part(loss: str, weight: float, mode: str) -> None:
    _, x, y, start = case(5, batch=6)
    model, start = network(), (EPS * start).clamp(-x, 1 - x)
    found = training_gradient(
        model, x, y, method="fast-bat", eps=EPS, start=start, step=STEP, curvature=CURVATURE, ig_weight=weight,
        attack_loss=loss, attack_mode=mode,
    )  # fmt: skip
    truth, delta = by_hand(model, x, y, start, loss, mode, weight)
    assert (found.delta - delta).abs().max() <= 1e-10
    assert_close(found.grads, truth, 1e-10)
    assert (float(found.implicit_share) > 1e-3) == (weight != 0)


def test_the_ratio_of_logits_needs_three_classes() -> None:
    _, x, y, _ = case(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    with pytest.raises(UserError, match="The objective `dlr` needs at least 3 classes, but there are 2"):
        training_gradient(model, x, y % 2, method="fast-bat", eps=EPS, attack_loss="dlr")


@pytest.mark.parametrize("option", ["attack_loss", "train_loss"])
def test_a_run_with_too_few_classes_is_refused_before_anything_is_written(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 12, 6, 6, 3), dtype=np.uint8)
    for split, classes in zip(("train", "test"), pixels, strict=True):
        for name, images in zip("ab", classes, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            for number, image in enumerate(images):
                Image.fromarray(image).save(tmp_path / split / name / f"{number}.png")
    words = ["fit", "--data", f"imagefolder:{tmp_path}", "--method", "pgd-at", "--model", "small-cnn"]
    run = tmp_path / "run"
    assert main([*words, f"--{option.replace('_', '-')}", "dlr", "--device", "cpu", "--out", str(run)]) == 2
    said = capsys.readouterr().err
    assert "The objective `dlr` needs at least 3 classes, but there are 2" in said and said.count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize("loss", list(LOSSES))
def test_an_infinite_curvature_leaves_no_implicit_part(loss: str) -> None:
    _, x, y, start = case(5, batch=6)
    model = network()
    given: dict[str, Any] = {"method": "fast-bat", "eps": EPS, "start": (EPS * start).clamp(-x, 1 - x), "step": STEP}
    shares = [
        float(training_gradient(model, x, y, attack_loss=loss, curvature=curvature, **given).implicit_share)
        for curvature in (1.0, 10.0, 1e12)
    ]
    assert shares[0] > 1e-3 and shares[1] == pytest.approx(shares[0] / 10) and shares[2] < 1e-11
    far = training_gradient(model, x, y, attack_loss=loss, curvature=1e38, **given)
    assert_close(far.grads, training_gradient(model, x, y, attack_loss=loss, ig_weight=0.0, **given).grads, 1e-15)


def test_the_clean_prediction_of_a_divergence_moves_with_the_parameters() -> None:
    _, x, y, start = case(5, batch=6)
    model = network()
    given: dict[str, Any] = {"eps": EPS, "start": (EPS * start).clamp(-x, 1 - x), "step": STEP, "attack_loss": "kl"}
    found = training_gradient(model, x, y, method="fast-bat", curvature=CURVATURE, **given)
    held = LOSSES["kl"]
    try:
        LOSSES["kl"] = lambda logits, clean, y: held(logits, clean.detach(), y)
        wrong, delta = by_hand(model, x, y, given["start"], "kl", "train", 1.0)
    finally:
        LOSSES["kl"] = held
    assert (found.delta - delta).abs().max() <= 1e-10  # the attack is the same
    scale = max(float(value.abs().max()) for value in wrong.values())
    assert max(float((found.grads[name] - value).abs().max()) for name, value in wrong.items()) > 1e-4 * scale

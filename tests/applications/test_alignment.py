"""Gradient alignment: known values, what the model is handed back as, and that training does not feel it."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adv_train import checkpoint, data, trainer
from adv_train.data.stratified import stratified_head
from adv_train.loading import load_model
from adv_train.measures import alignment, cosines
from adv_train.precision import computed_in
from adv_train.threat import Norm, Threat
from adv_train.train import fit
from tests.applications.test_resume import config

NORMS: list[tuple[Norm, float]] = [("linf", 0.2), ("l2", 1.5), ("l1", 4.0)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(*, norm: bool = False) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 6, 3), *([nn.BatchNorm2d(6)] if norm else []), nn.SiLU(), nn.Flatten(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(6 * 16, 4)).double()


def images(n: int = 9) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 1, 6, 6, dtype=torch.float64, generator=generator(1)), torch.arange(n) % 4


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_a_linear_two_class_model_is_aligned_everywhere(norm: Norm, eps: float) -> None:
    x, y = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    assert cosines(model, x, y % 2, Threat(norm, eps), generator()).tolist() == pytest.approx([1.0] * 9, abs=1e-12)
    assert alignment(model, x, y % 2, Threat(norm, eps), generator()) == pytest.approx(1.0, abs=1e-12)


class Bowl(nn.Module):
    """Logits 0 and |W x|^2 / 2: a layer that is linear and one that squares."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        value = (x.flatten(1) @ self.weight.T).square().sum(1) / 2
        return torch.stack([torch.zeros_like(value), value], 1)


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_two_layers_have_the_alignment_of_their_closed_form(norm: Norm, eps: float) -> None:
    """The gradient of the loss is a multiple of W'W x, of one sign for each label at both points."""
    x, y = images()
    weight = torch.randn(5, 36, dtype=torch.float64, generator=generator(2))
    eta = Threat(norm, eps).noise(x, generator=generator(7))
    square = weight.T @ weight
    here, there = x.flatten(1) @ square, (x + eta).flatten(1) @ square
    expected = [float(a @ b / (a @ a).sqrt() / (b @ b).sqrt()) for a, b in zip(here, there, strict=True)]
    assert min(expected) < 0.99
    found = cosines(Bowl(weight), x, y % 2, Threat(norm, eps), generator(7))
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert alignment(Bowl(weight), x, y % 2, Threat(norm, eps), generator(7)) == pytest.approx(sum(expected) / 9)


def test_it_is_the_angle_of_the_gradients_of_the_cross_entropy() -> None:
    x, y = images()
    model = network().eval()
    eta = Threat("linf", 0.3).noise(x, generator=generator())
    gradients = []
    for point in (x, x + eta):
        point = point.clone().requires_grad_()
        cross_entropy(model(point), y).backward()
        assert point.grad is not None
        gradients.append(point.grad.flatten(1))
    expected = torch.cosine_similarity(*gradients)
    assert float(expected.min()) < 0.99
    torch.testing.assert_close(cosines(model, x, y, Threat("linf", 0.3), generator()), expected, rtol=0, atol=1e-12)


def test_a_sure_model_still_has_an_angle() -> None:
    """1 - p_y is zero in single precision, and so is the gradient of the cross-entropy as it is usually computed."""
    x, y = images()
    x = x.float()
    model = copy.deepcopy(network()).float().eval()
    nn.init.zeros_(model[-1].bias)  # type: ignore[index, arg-type]
    with torch.no_grad():
        y = model(x).argmax(1)
        modest = cosines(model, x, y, Threat("linf", 0.02), generator())
        model[-1].weight *= 1e4  # type: ignore[index, operator]
        assert float(cross_entropy(model(x), y)) == 0
    sure = cosines(model, x, y, Threat("linf", 0.02), generator())
    assert sure.isfinite().all() and float(sure.min()) > float(modest.min()) - 0.2


def test_images_without_a_gradient_are_left_out() -> None:
    x, y = images()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 2), nn.Threshold(0.0, 0.0)).double()
    nn.init.zeros_(flat[1].weight)  # type: ignore[arg-type]
    assert math.isnan(alignment(flat, x, y % 2, Threat("linf", 0.1), generator()))
    bowl = Bowl(torch.eye(36, dtype=torch.float64))
    x[0] = 0  # the bottom of the bowl
    found = cosines(bowl, x, y % 2, Threat("linf", 0.1), generator())
    assert found.isnan().tolist() == [True] + [False] * 8
    assert alignment(bowl, x, y % 2, Threat("linf", 0.1), generator()) == pytest.approx(float(found[1:].mean()))


def test_the_model_is_handed_back_as_it_was_and_no_other_random_number_is_drawn() -> None:
    x, y = images()
    model = network(norm=True).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)  # type: ignore[union-attr, arg-type]
    model[0].bias.requires_grad_(False)  # type: ignore[union-attr]
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    modes[1:] = [index % 2 == 0 for index in range(len(modes) - 1)]
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    first = alignment(model, x, y, Threat("linf", 0.1), generator())
    assert first == alignment(model, x, y, Threat("linf", 0.1), generator())  # no dropout
    assert first != alignment(model, x, y, Threat("linf", 0.1), generator(1))
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    grads = [parameter.grad for parameter in model.parameters()]
    assert grads[0] is not None and bool((grads[0] == 1).all()) and grads[1:] == [None] * (len(grads) - 1)


@pytest.mark.parametrize("kind", ["bf16 autocast", "half weights"])
def test_low_precision_gives_nearly_the_same(kind: str) -> None:
    x, y = images()
    x, model = x.float(), network().float()
    threat = Threat("linf", 8 / 255)
    exact = alignment(model, x, y, threat, generator())
    with computed_in("bf16" if kind == "bf16 autocast" else "fp32", torch.device("cpu")):
        model = model if kind == "bf16 autocast" else model.bfloat16()
        found = alignment(model, x, y, threat, generator())
    assert found != exact and found == pytest.approx(exact, abs=0.02)


# --- in training ------------------------------------------------------------------------------------------------------


def test_training_is_the_same_with_and_without_it_and_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(model="small-cnn", epochs=2)
    fit(chosen, tmp_path / "with", progress=False)
    monkeypatch.setattr(trainer.Trainer, "_alignment", lambda _, model: None)
    fit(chosen, tmp_path / "without", progress=False)
    ours, theirs = (checkpoint.load(tmp_path / name / "last.pt") for name in ("with", "without"))
    for found, expected in ((ours.model, theirs.model), (ours.average, theirs.average)):
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    for index, state in theirs.optimizer["state"].items():
        assert torch.equal(ours.optimizer["state"][index]["momentum_buffer"], state["momentum_buffer"])
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert [line | {"val_alignment": None} for line in lines] == [dict(line) for line in theirs.history]
    validation = data.load("digits", root="", limit=96).validation
    eta = chosen.threat.noise(validation.images, generator=generator())
    model, gradients = load_model(tmp_path / "with", checkpoint="last"), []
    for point in (validation.images, validation.images + eta):
        point = point.clone().requires_grad_()
        cross_entropy(model(point), validation.labels, reduction="sum").backward()
        assert point.grad is not None
        gradients.append(point.grad.flatten(1))
    assert lines[-1]["val_alignment"] == pytest.approx(float(torch.cosine_similarity(*gradients).mean()), abs=1e-5)


def test_at_most_256_images_of_all_classes_are_looked_at_and_a_score_without_a_value_is_null(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = data.load("digits", root="")
    few = dataset.validation
    many = data.Split(few.images.repeat(3, 1, 1, 1), few.labels.repeat(3).sort().values)
    seen: list[tuple[Tensor, Tensor]] = []

    def look(_: object, x: Tensor, y: Tensor, *others: object) -> float:
        seen.append((x, y))
        return math.nan

    monkeypatch.setattr(trainer.measures, "alignment", look)
    for split in (few, many):
        at = trainer.Trainer(config(), replace(dataset, validation=split), torch.device("cpu"))
        assert at.validate()["val_alignment"] is None
    assert [len(y) for _, y in seen] == [180, 256] and torch.equal(seen[0][0], few.images)
    assert torch.equal(seen[1][0], many.images[stratified_head(many.labels, 256)])
    assert len(seen[1][1].unique()) == 10

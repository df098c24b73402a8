"""A small network with BatchNorm in double precision, in which train and eval mode and every pass leave a trace."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from adv_train.data import Batch
from adv_train.methods import Method, Moment, Sizes, State, Step
from adv_train.threat import Threat

EPS = 0.1
CLASSES = 4


def case(seed: int, batch: int = 5, classes: int = CLASSES) -> tuple[nn.Module, Tensor, Tensor]:
    """A model in train mode with statistics of its own, images of 2 x 6 x 6 that touch 0 and 1, and labels."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), nn.Linear(3 * 36, classes)
    ).double()
    x = torch.rand(batch, 2, 6, 6, dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    model(3 * x)
    return model, x, torch.randint(classes, (batch,))


def sizes(images: int, classes: int = CLASSES) -> Sizes:
    return Sizes(torch.Size((images, 2, 6, 6)), classes, images)


def moment(step: int, steps: int = 8, epoch: int = 0) -> Moment:
    return Moment(torch.tensor(step), torch.tensor(steps), torch.tensor(epoch))


def take(
    method: Method,
    model: nn.Module,
    batch: Batch,
    *,
    eps: float = EPS,
    at: Moment | None = None,
    state: State | None = None,
    start: Tensor | None = None,
    seed: int = 0,
) -> Step:
    """Take a step of a method, on a copy of the model that is left as it was; its objective has its gradient."""
    copied, threat = copy.deepcopy(model), Threat("linf", eps)
    params: dict[str, Tensor] = dict(copied.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    step = method(copied, params, batch, threat, moment=at, state=state, start=start, generator=generator)
    # What the passes left behind, for `assert_step`.
    step.__dict__["buffers"] = {name: value.clone() for name, value in copied.named_buffers()}
    assert step.objective is not None
    again = torch.autograd.grad(step.objective(params), list(params.values()))
    for found, value in zip(step.grads.values(), again, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)
    return step


def assert_step(found: Step, model: nn.Module, delta: Tensor, loss: Tensor) -> None:
    """Compare a step with a perturbation and a loss that were computed on this model, and what both left in it."""
    scale = max(1.0, float(loss.detach().abs()))
    assert float((found.delta - delta).abs().max()) <= 1e-12
    assert float((found.loss - loss.detach()).abs()) <= 1e-12 * scale
    truth = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), value in zip(model.named_parameters(), truth, strict=True):
        assert float((found.grads[name] - value).abs().max()) <= 1e-10 * scale, name
    for name, value in model.named_buffers():
        torch.testing.assert_close(found.__dict__["buffers"][name], value, rtol=1e-12, atol=1e-12)


def cut(x: Tensor, delta: Tensor, eps: float = EPS) -> Tensor:
    """Cut perturbations to the budget and the range of images."""
    return (x + delta.clamp(-eps, eps)).clamp(0, 1) - x


def slope_at(model: nn.Module, x: Tensor, delta: Tensor, objective: object) -> Tensor:
    """Return the gradient of a function of the logits at x + delta in the perturbation."""
    point = delta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(model(x + point)), point)  # type: ignore[operator]
    return slope

"""The same training steps in plain torch, each in one function: the lower bound for the time of composed steps.

They share no code with `blo` or with `adv_train.methods`, so the tests also use them as an oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: `step(model, x, y, start, eps)` returns the gradient by parameter name.
HandStep: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Tensor, float], dict[str, Tensor]]


def standard(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """Standard training on the images at `start`."""
    return _sign_steps(model, x, y, start, eps, [])


def fast_at(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """Fast-AT: one sign step of 1.25 eps."""
    return _sign_steps(model, x, y, start, eps, [1.25 * eps])


def n_fgsm(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """N-FGSM from the noise `start`: one sign step of eps, clipped to the range of images but not to the ball."""
    params: dict[str, Tensor] = dict(model.named_parameters())
    frozen = {name: value.detach() for name, value in params.items()}
    noise = start.detach().requires_grad_()
    output: Tensor = torch.func.functional_call(model, frozen, (x + noise,))
    (slope,) = torch.autograd.grad(F.cross_entropy(output, y, reduction="sum"), noise)
    delta = (noise.detach() + eps * slope.sign()).clamp(-x, 1 - x)
    grads = torch.autograd.grad(F.cross_entropy(model(x + delta), y), list(params.values()))
    return dict(zip(params, grads, strict=True))


def pgd_2(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """PGD-2-AT: two sign steps of eps/2."""
    return _sign_steps(model, x, y, start, eps, [eps / 2, eps / 2])


def fast_at_ga(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """Fast-AT-GA: one sign step of 1.25 eps, and the published weight of alignment at 8/255 or 16/255."""
    params: dict[str, Tensor] = dict(model.named_parameters())

    def slope(weights: dict[str, Tensor], at: Tensor, create_graph: bool) -> Tensor:
        at = at.detach().requires_grad_()
        output: Tensor = torch.func.functional_call(model, weights, (x + at,))
        return torch.autograd.grad(F.cross_entropy(output, y, reduction="sum"), at, create_graph=create_graph)[0]

    fixed = slope({name: value.detach() for name, value in params.items()}, start, False)
    delta = (start + 1.25 * eps * fixed.sign()).clamp((-x).clamp(min=-eps), (1 - x).clamp(max=eps))
    elsewhere = torch.empty_like(x).uniform_(-eps, eps)
    loss = F.cross_entropy(model(x + delta), y)
    moving = slope(params, elsewhere, True)
    a, b = fixed.flatten(1), moving.flatten(1)
    # As in the published code, samples where a gradient vanishes, so that it has no direction, do not count.
    counted = (a.norm(dim=1) > 0) & (b.detach().norm(dim=1) > 0)
    misaligned = ((1 - F.cosine_similarity(a, b, dim=1)) * counted).sum() / counted.sum().clamp(min=1)
    loss = loss + (0.2 if eps <= 8 / 255 + 1e-9 else 2.0) * misaligned
    return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


def fast_bat(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """Fast-BAT with its published step sizes and IG curvature 10."""
    step, curvature = 5000 / 255 if eps <= 8 / 255 + 1e-9 else 2000 / 255, 10.0
    params: dict[str, Tensor] = dict(model.named_parameters())
    frozen = {name: value.detach() for name, value in params.items()}
    low, high = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)

    def logits(weights: dict[str, Tensor], delta: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(model, weights, (x + delta,))
        return output

    z = start.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(logits(frozen, z), y, reduction="sum"), z)
    anchor = (z.detach() + step * slope).clamp(low, high).requires_grad_()
    inner = F.cross_entropy(logits(params, anchor), y, reduction="sum")
    (slope,) = torch.autograd.grad(inner, anchor, create_graph=True)
    delta = (anchor.detach() + step * slope.detach()).clamp(low, high).requires_grad_()
    loss = F.cross_entropy(logits(params, delta), y)
    *direct, outer = torch.autograd.grad(loss, [*params.values(), delta])
    free = (delta > low + 1e-7) & (delta < high - 1e-7)
    implicit = torch.autograd.grad(
        slope, list(params.values()), free * outer / curvature, allow_unused=True, materialize_grads=True
    )
    return {name: d + i for name, d, i in zip(params, direct, implicit, strict=True)}


def fast_bat_without(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """Fast-BAT without its implicit gradient: two gradient steps."""
    return _gradient_steps(model, x, y, start, eps, steps=2, shifted=False)


def fast_bat_shifted(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """First-order Fast-BAT: the plain gradient at the solution of two gradient steps plus the shift."""
    return _gradient_steps(model, x, y, start, eps, steps=2, shifted=True)


def fast_bat_shifted_1(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """First-order Fast-BAT with one gradient step."""
    return _gradient_steps(model, x, y, start, eps, steps=1, shifted=True)


def _gradient_steps(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float, *, steps: int, shifted: bool
) -> dict[str, Tensor]:
    step, curvature = 5000 / 255 if eps <= 8 / 255 + 1e-9 else 2000 / 255, 10.0
    params: dict[str, Tensor] = dict(model.named_parameters())
    frozen = {name: value.detach() for name, value in params.items()}
    low, high = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)
    delta = start.detach()
    for number in range(steps + shifted):
        delta.requires_grad_()
        output: Tensor = torch.func.functional_call(model, frozen, (x + delta,))
        (slope,) = torch.autograd.grad(F.cross_entropy(output, y, reduction="sum"), delta)
        delta = delta.detach()
        if number < steps:
            delta = (delta + step * slope).clamp(low, high)
        else:  # delta* is found: the last slope, on its free pixels, is the shift
            delta = delta + ((delta > low + 1e-7) & (delta < high - 1e-7)) * slope / curvature
    grads = torch.autograd.grad(F.cross_entropy(model(x + delta), y), list(params.values()))
    return dict(zip(params, grads, strict=True))


def _sign_steps(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float, steps: list[float]
) -> dict[str, Tensor]:
    params: dict[str, Tensor] = dict(model.named_parameters())
    frozen = {name: value.detach() for name, value in params.items()}
    low, high = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)
    delta = start.detach()
    for step in steps:
        delta.requires_grad_()
        output: Tensor = torch.func.functional_call(model, frozen, (x + delta,))
        (slope,) = torch.autograd.grad(F.cross_entropy(output, y, reduction="sum"), delta)
        delta = (delta.detach() + step * slope.sign()).clamp(low, high)
    grads = torch.autograd.grad(F.cross_entropy(model(x + delta), y), list(params.values()))
    return dict(zip(params, grads, strict=True))


#: The hand-written steps, by the titles of `adv_train.bench.run.cases`.
STEPS: dict[str, HandStep] = {
    "standard": standard,
    "fast-at": fast_at,
    "n-fgsm": n_fgsm,
    "pgd-at": pgd_2,
    "fast-bat": fast_bat,
    "fast-bat, no IG": fast_bat_without,
    "fast-bat, shifted": fast_bat_shifted,
    "fast-bat, shifted, 1 step": fast_bat_shifted_1,
    "fast-at-ga": fast_at_ga,
}

"""Projected gradient ascent on any loss, in plain torch: the optimiser of the attacks that evaluate a model.

It does not use `blo`: attacks that shared code with the training methods would share their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adv_train.attacks.checks import check_budget, check_labels, check_samples, checked
from adv_train.attacks.geometry import GEOMETRIES, Geometry
from adv_train.attacks.judging import (
    Judging,
    adapted,
    classes_of,
    deficit,
    frozen,
    full_resolution,
    progress_bar,
    suitable_threads,
)
from adv_train.attacks.masking import LEAST_EPS, Progress
from adv_train.attacks.room import Forward
from adv_train.ranks import Share
from adv_train.threat import Threat

_HALF = (torch.float16, torch.bfloat16)

Loss: TypeAlias = Callable[[Tensor], Tensor]
"""Maps logits ``(batch, classes)`` to the objective of the ascent, summed over the batch."""

Aim: TypeAlias = Callable[[Tensor, Tensor], Loss]
"""Makes the loss of a batch from its labels ``(batch,)`` and the logits of its clean images ``(batch, classes)``."""


@dataclass(frozen=True)
class Steps:
    """Number and length of the steps of one ascent.

    Attributes:
        count: Number of steps.
        size: Length of a step; ``None`` is a quarter of the ball's radius.
    """

    count: int
    size: float | None

    def length(self, threat: Threat) -> float:
        """Return the length of a step in the ball of a threat."""
        return threat.eps / 4 if self.size is None else self.size

    def told(self, threat: Threat) -> dict[str, Any]:
        """Return the step length, and the radii of a shrinking ball, for the record."""
        radii = GEOMETRIES[threat.norm].radii
        shrinking = {"radii": [radius * threat.eps for radius in radii]} if len(radii) > 1 else {}
        return {"step": self.length(threat), **shrinking}


def untargeted(y: Tensor, clean: Tensor) -> Loss:
    """Return the cross-entropy with the labels, the loss of an untargeted attack."""

    def loss(logits: Tensor) -> Tensor:
        if logits.dtype in _HALF:
            return deficit(logits, y).sum()  # It does not underflow where 1 - p_y is below 6e-8.
        # The sum, not the mean: both have the same sign, but the mean's smaller gradients underflow sooner.
        return cross_entropy(logits, y, reduction="sum")

    return loss


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    steps: Steps,
    aims: Callable[[int], Sequence[Aim]],
    judging: Judging,
    *,
    generator: torch.Generator | None = None,
    title: str = "PGD",
) -> tuple[Tensor, Tensor, Tensor]:
    """Attack each image once per aim, each time by ascent from a random start.

    A sample is broken if the model misclassifies the clean image or the last iterate of *any* ascent. Judging only the
    iterate of highest loss would overstate robustness, because a correctly classified image can have the higher loss.

    Broken samples are not attacked again, but each round draws starts for all samples, so the start of a sample depends
    neither on the batch size nor on the other samples. Without `generator`, the starts are drawn on the CPU from the
    seed, so they are the same on every device. Each rank attacks a part of the samples. The model is evaluated in eval
    mode; afterwards every mode, every ``requires_grad`` flag and every ``.grad`` is as before.

    Args:
        model: Maps images to logits.
        x: Images ``(N, C, H, W)``.
        y: Labels ``(N,)``.
        threat: The perturbations that the attack may choose from.
        steps: Number and length of the steps.
        aims: Returns the aims, given the number of classes.
        judging: Seed, batch size, progress bar and ranks.
        generator: Source of the starts.
        title: Name of the attack beside the progress bar.

    Returns:
        The parts of `Verdicts`: robust, images, predicted.

    Warns:
        RuntimeWarning: If the first ascent gets no gradient from the model, or does not progress along it.
    """
    generator = generator or torch.Generator().manual_seed(judging.seed)
    shape = GEOMETRIES[threat.norm]
    check_samples(x, y, threat)
    given, x = x, full_resolution(x)
    adversarial = x.clone()
    watch = Progress()
    with frozen(model), suitable_threads(model, x):
        forward, size = judging.fitted(adapted(model, given), x)
        with torch.no_grad():
            logits = torch.cat([checked(forward(batch), len(batch)) for batch in x.split(size)])
        check_labels(y, logits.shape[1])
        predicted = classes_of(logits)
        share, rounds = Share(len(x), judging.ranks), aims(logits.shape[1])
        own, robust = torch.arange(len(x), device=x.device)[share.rows], predicted == y
        with progress_bar(title, len(rounds) * len(own), "img", judging.progress) as bar:
            for number, aim in enumerate(rounds):
                start = start_of(x, threat, generator)
                for batch in own[robust[own]].split(size):
                    if len(batch) == 0:
                        continue
                    climb = Climb(forward, shape, threat, steps, aim, watch if number == 0 else None)
                    found = climb(start[batch], x[batch], y[batch], logits[batch])
                    adversarial[batch], predicted[batch] = found[0], classes_of(found[1])
                    robust[batch] = predicted[batch] == y[batch]
                    bar.update(len(batch))
                bar.update((number + 1) * len(own) - bar.n)  # Samples that were broken before need no work.
                bar.set_postfix_str(f"robust {robust[own].double().mean().item():.1%}")
    check_budget(adversarial, x, threat)
    if threat.eps >= LEAST_EPS * (threat.high - threat.low):
        watch.warn(judging.ranks)
    adversarial, predicted = (share.whole_of(found[share.rows]) for found in (adversarial, predicted))
    return predicted == y, adversarial, predicted


def start_of(x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """Draw a start for every image, in the ball of the first step, which in l1 is wider than the threat's."""
    shape = GEOMETRIES[threat.norm]
    return shape.start(x, _wider(threat, shape.radii[0]), generator)


def _wider(threat: Threat, radius: float) -> Threat:
    """Return the threat with its radius multiplied by `radius`."""
    return threat if radius == 1 else replace(threat, eps=radius * threat.eps)


@dataclass(frozen=True)
class Climb:
    """Projected ascent steps from a start."""

    forward: Forward
    shape: Geometry
    threat: Threat
    steps: Steps
    aim: Aim
    watch: Progress | None = None

    def __call__(self, start: Tensor, x: Tensor, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last iterate and its logits; `clean` are the logits of the clean images."""
        balls = self._balls()
        loss = self.aim(y, clean)
        z = self.shape.project(start, x, balls[0])
        finite = torch.ones((), dtype=torch.bool, device=z.device)
        for step, (ball, following) in enumerate(pairwise(balls)):
            with torch.enable_grad():
                z.requires_grad_()
                logits = self.forward(z)
                gradient = _gradient(loss(logits), z)
            finite &= gradient.isfinite().all()
            if step == 0 and self.watch is not None:
                # If the first ball is wider than the threat's, a start in it may be worse for the model than any
                # image of the threat, so the progress is measured from the clean image.
                self.watch.begin(logits.detach() if len(self.shape.radii) == 1 else clean, y, gradient)
            z = z.detach() + self.steps.length(ball) * self.shape.step(gradient)
            z = self.shape.project(z, x, following)
        # The sign of NaN is 0: the attack would stand still and call the sample robust.
        if not finite:
            raise RuntimeError(
                "PGD cannot evaluate this model: the gradient of its loss in the image is not finite on a correctly "
                "classified image. Look for sqrt, norm or log at 0 in the model, or for weights that overflow."
            )
        with torch.no_grad():
            logits = checked(self.forward(z), len(z))
        if self.watch is not None:
            self.watch.end(logits, y)
        return z, logits

    def _balls(self) -> list[Threat]:
        """Return the ball in which each step begins, followed by the threat's ball, in which the last step ends."""
        *wide, _ = self.shape.radii
        count = self.steps.count
        first = [_wider(self.threat, radius) for radius in wide for _ in range(count // len(self.shape.radii))]
        return first + [self.threat] * (count + 1 - len(first))


def _gradient(loss: Tensor, z: Tensor) -> Tensor:
    """Return the gradient of a loss in the images; zero if the model detaches its output from them."""
    (gradient,) = torch.autograd.grad(loss, z, allow_unused=True) if loss.requires_grad else (None,)
    return torch.zeros_like(z) if gradient is None else gradient

"""Projected gradient descent with random restarts: the judge's own lower-level solver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adv_train.attacks.base import ATTACKS, Attack, Verdicts
from adv_train.attacks.geometry import GEOMETRIES, Geometry
from adv_train.attacks.judging import (
    Forward,
    adapted,
    check_budget,
    check_labels,
    check_samples,
    checked,
    classes_of,
    frozen,
    full_resolution,
    progress_bar,
    suitable_threads,
)
from adv_train.attacks.masking import LEAST_EPS, Progress
from adv_train.threat import Norm, Threat
from adv_train.values import Count, Positive

_HALF = (torch.float16, torch.bfloat16)


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent on the cross-entropy, with random restarts (Madry et al., ICLR 2018).

    The default is PGD-50-10 of the published tables. In linf steps follow the sign of the gradient, in l2 and l1 the
    gradient; in l1 the ball shrinks from 3 eps to eps on the way.

    Attributes:
        steps: Steps of each restart, at least 1.
        restarts: Random starts, at least 1.
        step: Largest change of a pixel in a step in linf, its Euclidean length in l2 and l1; ``None`` is a quarter of
            the ball's radius.

    Raises:
        UserError: When an option is out of its range.
    """

    steps: Count = 50
    restarts: Count = 10
    step: Positive | None = None

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int,
        batch_size: int = 512,
        progress: bool | None = False,
    ) -> Verdicts:
        """Attack every image; the starts are drawn on the CPU, so they are the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return _attack(model, x, y, threat, self, generator=generator, batch_size=batch_size, progress=progress)


PGDSettings = PGD  # The name that scripts know.


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 50,
    restarts: int = 10,
    step: float | None = None,
    generator: torch.Generator,
    batch_size: int = 512,
    progress: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """Attack every image in the ball of radius eps in [0, 1], from starts that a given generator draws.

    Args:
        model: Maps images in [0, 1] to logits ``(batch, classes)``, with its normalisation inside.
        x: Images ``(N, C, H, W)`` in [0, 1], on the model's device.
        y: Labels ``(N,)``, int64.
        eps: Radius in units of images in [0, 1].
        norm: Of the ball.
        steps: Steps of each restart.
        restarts: Random starts, uniform in the ball.
        step: Length of a step; ``None`` is a quarter of the radius.
        generator: Draws the starts, on its own device.
        batch_size: Images in a forward pass; it does not change the result beyond rounding.
        progress: Show a bar; ``None`` shows it on a terminal only.

    Returns:
        Whether each sample is robust, ``(N,)`` bool, and images like x: for a broken sample the one that broke
        it (x itself where that was misclassified), for a robust one the last iterate of the last restart.

    Warns:
        RuntimeWarning: When the model gives PGD nothing to climb by (see `adv_train.attacks.masking`).

    Raises:
        UserError: When an argument is out of range or shape.
        RuntimeError: When a gradient is not finite, or an image leaves the ball.
    """
    settings, threat = PGD(steps, restarts, step), Threat(norm, eps)
    found = _attack(model, x, y, threat, settings, generator=generator, batch_size=batch_size, progress=progress)
    return found.robust, found.images


def _attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    settings: PGD,
    *,
    generator: torch.Generator,
    batch_size: int,
    progress: bool | None,
) -> Verdicts:
    """Maximise the cross-entropy at x + delta over delta.

    It is written in plain torch, independent of `blo`: a judge that shared code with the trained methods would share
    their errors.

    A sample is broken when the clean image is misclassified or when the last iterate of *any* restart is; keeping
    only the restart of highest loss would overstate robustness, because a higher loss can be a correct class.
    Broken samples leave the batch. The starts are drawn for all samples all the same, so that neither the batch
    size nor another sample's fate changes what a sample meets. The model is judged in eval mode and handed back
    as it was, with every mode, flag and ``.grad`` in place.
    """
    shape = GEOMETRIES[threat.norm]
    check_samples(x, y, threat)
    restarts = settings.restarts
    given, x = x, full_resolution(x)
    adversarial = x.clone()
    bar = progress_bar("PGD", restarts * len(x), "img", progress)
    watch = Progress()
    with frozen(model), suitable_threads(model, x), bar:
        forward = adapted(model, given)
        with torch.no_grad():
            logits = torch.cat([checked(forward(batch), len(batch)) for batch in x.split(batch_size)])
        check_labels(y, logits.shape[1])
        predicted = classes_of(logits)
        robust = predicted == y
        for restart in range(restarts):
            start = shape.start(x, _wider(threat, shape.radii[0]), generator)
            for batch in robust.nonzero().squeeze(1).split(batch_size):
                if len(batch) == 0:
                    continue
                climb = _Climb(forward, shape, threat, settings, watch if restart == 0 else None)
                adversarial[batch], predicted[batch] = climb(start[batch], x[batch], y[batch], logits[batch])
                robust[batch] = predicted[batch] == y[batch]
                bar.update(len(batch))
            bar.update((restart + 1) * len(x) - bar.n)  # What was already broken is done without work.
            bar.set_postfix_str(f"robust {robust.double().mean().item():.1%}")
    check_budget(adversarial, x, threat)
    if threat.eps >= LEAST_EPS * (threat.high - threat.low):
        watch.warn()
    said = {"steps": settings.steps, "restarts": restarts, "step": _length(threat, settings), "loss": "cross-entropy"}
    if len(shape.radii) > 1:
        said["radii"] = [radius * threat.eps for radius in shape.radii]
    return Verdicts(robust, adversarial, predicted, said)


def _length(threat: Threat, settings: PGD) -> float:
    return threat.eps / 4 if settings.step is None else settings.step


def _wider(threat: Threat, radius: float) -> Threat:
    """Give the threat whose ball has another radius, in units of the threat's own."""
    return threat if radius == 1 else replace(threat, eps=radius * threat.eps)


@dataclass(frozen=True)
class _Climb:
    """One restart: projected ascent steps on the cross-entropy from a start."""

    forward: Forward
    shape: Geometry
    threat: Threat
    settings: PGD
    watch: Progress | None

    def __call__(self, start: Tensor, x: Tensor, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Give the last iterate and its predicted classes; `clean` are the logits of the images."""
        balls = self._balls()
        z = self.shape.project(start, x, balls[0])
        finite = torch.ones((), dtype=torch.bool, device=z.device)
        for step, (ball, following) in enumerate(pairwise(balls)):
            with torch.enable_grad():
                z.requires_grad_()
                logits = self.forward(z)
                gradient = _gradient(logits, y, z)
            finite &= gradient.isfinite().all()
            if step == 0 and self.watch is not None:
                # A start in a wider ball is no measure of what the ball of the end allows.
                self.watch.begin(logits.detach() if len(self.shape.radii) == 1 else clean, y, gradient)
            z = z.detach() + _length(ball, self.settings) * self.shape.step(gradient)
            z = self.shape.project(z, x, following)
        # The sign of NaN is 0: the attack would stand still and call the sample robust.
        if not finite:
            raise RuntimeError(
                "PGD cannot judge this model: the gradient of its loss in the image is not finite on a correctly "
                "classified image. Look for sqrt, norm or log at 0 in the model, or for weights that overflow."
            )
        with torch.no_grad():
            logits = checked(self.forward(z), len(z))
        if self.watch is not None:
            self.watch.end(logits, y)
        return z, classes_of(logits)

    def _balls(self) -> list[Threat]:
        """Give the ball in which each step begins, and the threat's own, in which the last one ends."""
        *wide, _ = self.shape.radii
        steps = self.settings.steps
        first = [_wider(self.threat, radius) for radius in wide for _ in range(steps // len(self.shape.radii))]
        return first + [self.threat] * (steps + 1 - len(first))


def _gradient(logits: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Differentiate the cross-entropy in the images; where the model cuts the graph the gradient is zero."""
    if logits.dtype in _HALF:
        # (1 - p_y) times this is the gradient of the cross-entropy, so it has the same direction for each sample; and
        # it does not underflow in half precision where the model is sure and 1 - p_y is below 6e-8.
        logits = logits.float()
        others = logits.scatter(1, y[:, None], -torch.inf)
        loss = (others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)).sum()
    else:
        # The sum, not the mean: the sign is the same and small gradients stay clear of underflow.
        loss = cross_entropy(logits, y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, z, allow_unused=True) if loss.requires_grad else (None,)
    return torch.zeros_like(z) if gradient is None else gradient

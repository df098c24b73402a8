"""Projected gradient descent with random restarts: the judge's own lower-level solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adv_train.attacks.judging import check_budget, check_samples, frozen, predict, progress_bar, suitable_threads
from adv_train.errors import UserError


@dataclass(frozen=True)
class PGDSettings:
    """How hard PGD tries. The default is PGD-50-10 of the published tables.

    Attributes:
        steps: Sign steps of each restart, at least 1.
        restarts: Random starts, at least 1.
        step: Length of a step in units of images in [0, 1]; ``None`` is eps / 4.
    """

    steps: int = 50
    restarts: int = 10
    step: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UserError(f"PGD needs steps >= 1 and restarts >= 1, but got {self.steps} and {self.restarts}.")
        if self.step is not None and not self.step > 0:
            raise UserError(f"PGD needs a step above 0, but got {self.step}. Leave it out for eps / 4.")


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 50,
    restarts: int = 10,
    step: float | None = None,
    generator: torch.Generator,
    batch_size: int = 512,
    progress: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """Attack every image in the L-infinity ball of radius eps intersected with [0, 1] (Madry et al., ICLR 2018).

    The attack is the lower-level problem of the bilevel view, max over delta of the cross-entropy at x + delta.
    It is written in plain torch all the same, independent of `blo`: a judge that shared code with the trained
    methods would share their errors.

    A sample is broken when the clean image is misclassified or when the last iterate of *any* restart is; keeping
    only the restart of highest loss would overstate robustness, because a higher loss can be a correct class.
    Broken samples leave the batch. The starts are drawn for all samples all the same, so that neither the batch
    size nor another sample's fate changes what a sample meets. The model is judged in eval mode and handed back
    as it was, with every mode, flag and ``.grad`` in place.

    Args:
        model: Maps images in [0, 1] to logits ``(batch, classes)``, with its normalisation inside.
        x: Images ``(N, C, H, W)`` in [0, 1], on the model's device.
        y: Labels ``(N,)``, int64.
        eps: Radius in units of images in [0, 1].
        steps: Sign steps of each restart.
        restarts: Random starts, uniform in the ball.
        step: Length of a step; ``None`` is eps / 4.
        generator: Draws the starts, on its own device.
        batch_size: Images in a forward pass; it does not change the result beyond rounding.
        progress: Show a bar; ``None`` shows it on a terminal only.

    Returns:
        Whether each sample is robust, ``(N,)`` bool, and images like x: for a broken sample the one that broke
        it (x itself where that was misclassified), for a robust one the last iterate of the last restart.

    Raises:
        UserError: When an argument is out of range or shape.
        RuntimeError: When a gradient is not finite, or an image leaves the ball.
    """
    PGDSettings(steps, restarts, step)
    check_samples(x, y, eps)
    length = eps / 4 if step is None else step
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    adversarial = x.clone()
    bar = progress_bar("PGD", restarts * len(x), "img", progress)
    with frozen(model), suitable_threads(model, x), bar:
        robust = predict(model, x, batch_size) == y
        for restart in range(restarts):
            noise = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
            start = x + eps * noise.uniform_(-1, 1, generator=generator).to(x.device)
            for batch in robust.nonzero().squeeze(1).split(batch_size):
                if len(batch) == 0:
                    continue
                z = _ascend(model, start[batch], y[batch], low[batch], high[batch], length, steps)
                adversarial[batch] = z
                robust[batch] = predict(model, z, batch_size) == y[batch]
                bar.update(len(batch))
            bar.update((restart + 1) * len(x) - bar.n)  # What was already broken is done without work.
            bar.set_postfix_str(f"robust {robust.double().mean().item():.1%}")
    check_budget(adversarial, x, eps)
    return robust, adversarial


def _ascend(model: nn.Module, start: Tensor, y: Tensor, low: Tensor, high: Tensor, length: float, steps: int) -> Tensor:
    """Climb the cross-entropy by projected sign steps from `start`, which need not lie in the box."""
    z = start.clamp(low, high)
    finite = torch.ones((), dtype=torch.bool, device=z.device)
    for _ in range(steps):
        with torch.enable_grad():
            z.requires_grad_()
            # The sum, not the mean: the sign is the same and small gradients stay clear of underflow.
            (gradient,) = torch.autograd.grad(cross_entropy(model(z), y, reduction="sum"), z)
        finite &= gradient.isfinite().all()
        z = (z.detach() + length * gradient.sign()).clamp(low, high)
    # The sign of NaN is 0: the attack would stand still and call the sample robust.
    if not finite:
        raise RuntimeError(
            "PGD cannot judge this model: the gradient of its loss in the image is not finite on a correctly "
            "classified image. Look for sqrt, norm or log at 0 in the model, or for weights that overflow."
        )
    return z

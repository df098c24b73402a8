"""Judging a trained model: clean accuracy (SA), and robust accuracy under PGD (RA-PGD) and AutoAttack (RA-AA)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from adv_train import attacks
from adv_train.attacks import PGDSettings
from adv_train.attacks.judging import check_samples, frozen, predict
from adv_train.evaluation import Evaluation, Examples, read, write

__all__ = ["Evaluation", "Examples", "PGDSettings", "evaluate_model", "read", "write"]


def evaluate_model(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    pgd: PGDSettings | None = PGDSettings(),  # noqa: B008  # Frozen, so sharing the default is safe.
    autoattack: bool = True,
    seed: int = 0,
    batch_size: int = 512,
    examples: int = 6,
    progress: bool | None = False,
) -> Evaluation:
    """Judge a model in eval mode, and hand it back as it was.

    On one device and thread count the outcome depends on the arguments alone; the noise of PGD is drawn on the
    CPU, so it is the same on every device.

    Args:
        model: Maps images in [0, 1] to logits ``(batch, classes)``, with its normalisation inside.
        images: Shape ``(n, C, H, W)``, n >= 1: uint8, or floating point in [0, 1]; on the model's device.
        labels: Shape ``(n,)``, int64, on the same device.
        eps: Radius of the attacks in units of images in [0, 1].
        pgd: How hard PGD tries; ``None`` leaves it out.
        autoattack: Run standard AutoAttack, the costly part.
        seed: Of the attacks.
        batch_size: Images in a forward pass.
        examples: How many attacked samples to keep for looking at.
        progress: Show bars; ``None`` shows them on a terminal only.

    Returns:
        Per-sample outcomes and what follows from them.

    Raises:
        UserError: When an argument is out of range or shape.
        RuntimeError: When an attack leaves its budget.
    """
    x = images if images.is_floating_point() else images.float() / 255
    check_samples(x, labels, eps)
    with frozen(model):
        before = predict(model, x, batch_size)
    settings: dict[str, dict[str, Any]] = {}
    pgd_robust = aa_robust = adversarial = None
    if pgd is not None:
        generator = torch.Generator().manual_seed(seed)
        pgd_robust, adversarial = attacks.pgd(
            model,
            x,
            labels,
            eps=eps,
            steps=pgd.steps,
            restarts=pgd.restarts,
            step=pgd.step,
            generator=generator,
            batch_size=batch_size,
            progress=progress,
        )
        step = eps / 4 if pgd.step is None else pgd.step
        settings["pgd"] = {"steps": pgd.steps, "restarts": pgd.restarts, "step": step, "loss": "cross-entropy"}
    if autoattack:
        aa_robust, aa_images = attacks.autoattack(
            model, x, labels, eps=eps, seed=seed, batch_size=batch_size, progress=progress
        )
        adversarial = aa_images if adversarial is None else adversarial
        settings["autoattack"] = {"version": "standard", "norm": "Linf", "pyautoattack": version("pyautoattack")}
        settings["autoattack"]["batch_size"] = batch_size  # AutoAttack's random numbers depend on it.
    kept = None
    if adversarial is not None and examples > 0:
        kept = _examples(model, x, adversarial, labels, before, examples)
    return Evaluation(
        eps=eps,
        seed=seed,
        clean=(before == labels).cpu().numpy(),
        pgd=None if pgd_robust is None else pgd_robust.cpu().numpy(),
        autoattack=None if aa_robust is None else aa_robust.cpu().numpy(),
        settings=settings,
        examples=kept,
    )


def _examples(model: nn.Module, x: Tensor, adversarial: Tensor, labels: Tensor, before: Tensor, k: int) -> Examples:
    """Keep the first k correctly classified samples: chosen blind to whether the attack broke them."""
    # A stable sort brings the correct ones to the front in their order, and fills up with others if they are few.
    chosen = (before != labels).int().argsort(stable=True)[:k]
    with frozen(model):
        after = predict(model, adversarial[chosen], len(chosen))
    return Examples(
        clean=x[chosen].float().cpu().numpy(),
        adversarial=adversarial[chosen].float().cpu().numpy(),
        label=labels[chosen].cpu().numpy(),
        before=before[chosen].cpu().numpy(),
        after=after.cpu().numpy(),
    )

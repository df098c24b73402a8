"""AutoAttack in its standard version, which defines RA-AA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor, nn

from adv_train.attacks.base import ATTACKS
from adv_train.attacks.official import OfficialAttack
from adv_train.threat import Norm, Threat

LEAST_CLASSES: Final = 4
"""Number of logits that the targeted DLR loss compares."""


@ATTACKS.register("autoattack")
@dataclass(frozen=True)
class StandardAutoAttack(OfficialAttack):
    """Standard AutoAttack: APGD-CE, APGD-T, FAB-T and Square (Croce and Hein, ICML 2020).

    The package `pyautoattack` runs it; it has no options. A model with fewer than ten classes has fewer than the
    standard nine target classes. In l1 the standard version shrinks the ball of APGD from 3 eps and starts APGD-CE five
    times (Croce and Hein, ICML 2021).
    """

    least_classes: ClassVar[int] = LEAST_CLASSES


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    seed: int,
    batch_size: int = 512,
    progress: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """Run standard AutoAttack in [0, 1]; see `StandardAutoAttack` for what it does and raises.

    Returns:
        Whether each sample is robust, ``(N,)`` bool, and images of the shape of x: the image that broke a broken
        sample, and the clean image of a robust sample.
    """
    threat = Threat(norm, eps)
    found = StandardAutoAttack()(model, x, y, threat, seed=seed, batch_size=batch_size, progress=progress)
    return found.robust, found.images

"""Images that PGD leaves and another attack breaks: robustness that is not there."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from adv_train.doctor.base import Finding, ill, well
from adv_train.doctor.significance import exceeds

HONEST: Final = 0.03
"""Share of the images PGD leaves that a weak attack may break although gradients lead somewhere: PGD has few steps."""


def overlooked(broken: Tensor, by: str) -> Finding:
    """Judge by whether a weaker attack breaks what PGD leaves.

    Args:
        broken: Of each image that PGD leaves, whether the other attack breaks it.
        by: What the other attack is called.
    """
    count, n = int(broken.sum()), len(broken)
    seen = f"PGD leaves {n} images, and {by} breaks {count} of them ({count / n:.1%})"
    figures = {"left_by_pgd": n, "broken": count}
    if not exceeds(count, n, HONEST):
        return well(seen, **figures)
    return ill(
        seen,
        "The gradients are masked: look for rounding, sampling, detach() or saturation inside the model, and judge it "
        "by `square`, `transfer` and `autoattack`, not by PGD alone.",
        **figures,
    )

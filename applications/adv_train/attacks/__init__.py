"""The attacks that judge a model, one file each: PGD with restarts, and AutoAttack.

They are plain torch and share no code with the attacks inside the training methods, so an error in the trained
method cannot hide itself from its own evaluation.
"""

from __future__ import annotations

from adv_train.attacks.autoattack import StandardAutoAttack, autoattack
from adv_train.attacks.base import ATTACKS, Attack, Verdicts
from adv_train.attacks.pgd import PGD, PGDSettings, pgd

__all__ = [
    "ATTACKS",
    "PGD",
    "Attack",
    "PGDSettings",
    "StandardAutoAttack",
    "Verdicts",
    "autoattack",
    "pgd",
]

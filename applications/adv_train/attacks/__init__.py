"""The attacks that evaluate a model, one file each: PGD in several forms, AutoAttack in its versions and its parts.

They are plain torch and share no code with the attacks inside the training methods, so an error in the trained
method cannot hide itself from its own evaluation.
"""

from __future__ import annotations

from adv_train.attacks.apgd import APGD
from adv_train.attacks.autoattack import StandardAutoAttack, autoattack
from adv_train.attacks.autoattack_versions import PlusAutoAttack, RandAutoAttack
from adv_train.attacks.base import ATTACKS, Attack, Verdicts
from adv_train.attacks.cascade import Cascade
from adv_train.attacks.pgd import PGD, PGDSettings, pgd
from adv_train.attacks.pgd_targeted import TargetedPGD
from adv_train.attacks.square import Square
from adv_train.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "ATTACKS",
    "PGD",
    "Attack",
    "Cascade",
    "PGDSettings",
    "PlusAutoAttack",
    "RandAutoAttack",
    "Square",
    "StandardAutoAttack",
    "TargetedPGD",
    "Transfer",
    "Verdicts",
    "autoattack",
    "pgd",
]

"""The attacks that judge a model: PGD with restarts, and AutoAttack.

They are plain torch and share no code with the attacks inside the training methods, so an error in the trained
method cannot hide itself from its own evaluation.
"""

from __future__ import annotations

from adv_train.attacks.autoattack import autoattack
from adv_train.attacks.pgd import PGDSettings, pgd

__all__ = ["PGDSettings", "autoattack", "pgd"]

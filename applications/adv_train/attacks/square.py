"""Random search, which needs no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adv_train.attacks.base import ATTACKS
from adv_train.attacks.official import OfficialAttack
from adv_train.values import Count

if TYPE_CHECKING:
    from pyautoattack import AutoAttack


@ATTACKS.register("square")
@dataclass(frozen=True)
class Square(OfficialAttack):
    """Square, random search by logits alone (Andriushchenko et al., ECCV 2020), as AutoAttack runs it.

    It asks the model for logits and never for gradients: what breaks under it and not under PGD is not robust but hides
    its gradients.

    Attributes:
        queries: Forward passes for each sample, at least 1; AutoAttack takes 5000.

    Raises:
        UserError: When an option is out of its range.
    """

    title: ClassVar[str] = "Square"

    queries: Count = 5000

    def change(self, attack: AutoAttack) -> None:
        """Leave out the other parts."""
        attack.attacks_to_run = ["square"]
        attack.square.n_queries = self.queries

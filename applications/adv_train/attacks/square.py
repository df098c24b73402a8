"""Square: random search, which needs no gradients."""

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

    It uses the model's logits and no gradients. If it breaks samples that PGD does not break, the model is not robust
    on them but masks its gradients.

    Attributes:
        queries: Forward passes for each sample, at least 1; AutoAttack makes 5000.

    Raises:
        UserError: If an option is out of its range.
    """

    title: ClassVar[str] = "Square"

    queries: Count = 5000

    def change(self, attack: AutoAttack) -> None:
        """Leave out the other parts."""
        attack.attacks_to_run = ["square"]
        attack.square.n_queries = self.queries

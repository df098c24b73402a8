"""Fast-BAT: the linearised lower problem and its implicit gradient (Zhang et al., ICML 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

import blo
from adv_train import values
from adv_train.methods.base import METHODS, Adversarial
from adv_train.methods.known import train_at
from adv_train.methods.losses import Losses
from adv_train.threat import NORMS, Threat
from adv_train.values import Count, Positive


@METHODS.register("fast-bat")
@dataclass(frozen=True, kw_only=True)
class FastBAT(Adversarial):
    """Linearise the attack's objective at an anchor, solve it in one step, follow its implicit gradient.

    The published update uses two different lambdas: 1/step solves the lower problem, `curvature` weighs the implicit
    gradient. `curvature = 1/step` is the theory's single lambda. In l2 and l1 the steps are projected onto the ball cut
    by the range of images, and the implicit gradient moves along its boundary.

    With L the summed loss that both levels share, delta* the solution and P the projector on its free pixels, the
    implicit gradient is that of `<dL/dz at the anchor, u>` in the parameters, for the constant `u = ig_weight *
    P dL/ddelta* / curvature`. `implicit="shifted"` evaluates it at delta* in place of the anchor, and direct and
    implicit gradient together by the plain gradient at `delta* + u`, without second derivatives: for smooth networks
    they differ by O(|u|^2), and from the published gradient also by O(|u| |delta* - anchor|). For a network of ReLUs
    it is another estimator. It costs `2 steps + 5` forward passes, 9 for two steps and 7 for one, in place of
    `2 steps + 7`. The shifted point may leave the ball by up to |u|, and no share of an implicit part is reported.

    Attributes:
        steps: attack steps in all; the last one is the linearised problem, those before find its anchor.
        step: step size on the summed loss, in pixels squared per loss; by default 5000/255 up to eps = 8/255 and
            2000/255 above, as published for CIFAR.
        direction: `"gradient"` as published, or `"sign"`, whose implicit gradient is zero: one sign step is Fast-AT.
        curvature: lower curvature assumed in the implicit gradient; 10 as published.
        ig_weight: weight of the implicit gradient: 1 as published, 0 leaves it out, -1 reverses it.
        implicit: `"exact"` differentiates twice; `"shifted"` trains at a shifted point, where both levels share a loss.
    """

    norms = NORMS
    differentiates_once_with = ("--implicit shifted",)
    steps: Count = 2
    step: Positive | None = None
    direction: Literal["gradient", "sign"] = "gradient"
    curvature: Positive = 10.0
    ig_weight: float = 1.0
    implicit: Literal["exact", "shifted"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        shared = self.attack_loss == self.train_loss and self.attack_mode == "train"
        if self.implicit == "shifted" and not shared:
            rule = "exact where `attack_loss` is not `train_loss` or `attack_mode` is eval"
            raise values.refused("implicit", rule, self.implicit)

    @property
    def differentiates_once(self) -> bool:
        return self.implicit == "shifted" or self._without

    @property
    def _without(self) -> bool:
        # The derivative of a sign is zero, so a sign step has no implicit gradient.
        return self.ig_weight == 0 or self.direction == "sign"

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        step = self._step(threat)
        anchor = start
        if self.steps > 1:
            walk = blo.ProjectedGradient(step, max_steps=self.steps - 1, tol=None, direction=self.direction)
            anchor = blo.argmin(attack, params, start, solver=walk, gradient=blo.Zero(), on_failure="ignore")
        solver = blo.OneStep(step, self.direction)
        strategy = blo.Zero() if self._without else blo.HessianFree(self.curvature)
        if self._without or self.implicit == "exact":

            def upper(theta: dict[str, Tensor], delta: Tensor) -> Tensor:
                # The implicit part is linear in this slope; a weight in its curvature would also weigh that of a ball.
                return losses.train(theta, delta.detach() + self.ig_weight * (delta - delta.detach()))

            return blo.value_and_hypergrad(
                upper,
                attack.linearize(anchor, curvature=1 / step),
                params,
                anchor,
                solver=solver,
                gradient=strategy,
                on_failure="ignore",
            )
        fixed = {name: value.detach() for name, value in params.items()}
        held = blo.LowerProblem(lambda _, delta: losses.attack(fixed, delta), attack.constraint, batched=True)
        # With nothing to differentiate in, the strategy makes no second backward pass, and its adjoint is u.
        found = blo.value_and_hypergrad(
            lambda _, delta: -losses.attack(fixed, delta).sum(),
            held.linearize(anchor, curvature=1 / step),
            {},
            anchor,
            solver=solver,
            gradient=strategy,
            on_failure="ignore",
        )
        return train_at(losses, params, found.z + self.ig_weight * found.state["q"].view_as(found.z))

    def _step(self, threat: Threat) -> float:
        if self.step is not None:
            return self.step
        return 5000 / 255 if threat.eps <= 8 / 255 + 1e-9 else 2000 / 255

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
    """Linearise the attack's objective at an anchor, solve this problem in one step, and add its implicit gradient.

    The theory has a single lambda, but the published update uses two values: 1/step to solve the lower problem, and
    `curvature` in the implicit gradient. With `curvature = 1/step` they are equal. In l2 and l1 the steps are projected
    onto the ball intersected with the range of images, and the implicit gradient acts along the boundary of this set.

    Let L be the summed loss that both levels share, delta* the solution of the lower problem, and P the projector onto
    its free pixels. The implicit gradient is the gradient of `<dL/dz at the anchor, u>` in the parameters, where
    `u = ig_weight * P dL/ddelta* / curvature` is a constant.

    `implicit="shifted"` evaluates dL/dz at delta* instead of the anchor, and replaces the sum of the direct and the
    implicit gradient by the plain gradient at `delta* + u`, which needs no second derivatives. For smooth networks the
    two differ by O(|u|^2), and the shifted gradient differs from the published one also by O(|u| |delta* - anchor|).
    For a network of ReLUs it is another estimator. A training step costs `2 steps + 5` forward passes (9 for two attack
    steps, 7 for one) instead of `2 steps + 7`. The shifted point may leave the ball by up to |u|, and no implicit share
    is reported.

    Attributes:
        steps: number of attack steps; the last one solves the linearised problem, the earlier ones find its anchor.
        step: step size on the summed loss, in pixels squared per loss; by default 5000/255 up to eps = 8/255 and
            2000/255 above, as published for CIFAR.
        direction: `"gradient"` as published, or `"sign"`, whose implicit gradient is zero: one sign step is Fast-AT.
        curvature: curvature of the lower problem that the implicit gradient assumes; 10 as published.
        ig_weight: weight of the implicit gradient: 1 as published, 0 leaves it out, -1 reverses it.
        implicit: `"exact"` uses second derivatives; `"shifted"` trains at a shifted point, and needs the same loss on
            both levels.
    """

    norms = NORMS
    mixes = True
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
            rule = "exact if `attack_loss` differs from `train_loss` or `attack_mode` is eval"
            raise values.refused("implicit", rule, self.implicit)

    @property
    def differentiates_once(self) -> bool:
        return self.implicit == "shifted" or self._without

    @property
    def differentiates_gradients(self) -> bool:
        return not self.differentiates_once

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
        if self._without:
            # From the anchor, the step is the same for the attack's objective and for its linearisation.
            return blo.value_and_hypergrad(
                losses.train, attack, params, anchor, solver=solver, gradient=blo.Zero(), on_failure="ignore"
            )
        if self.implicit == "exact":

            def upper(theta: dict[str, Tensor], delta: Tensor) -> Tensor:
                # The implicit part is linear in dL/ddelta, so the weight acts on this derivative. A weight on
                # `curvature` would act differently: a ball's boundary adds its own curvature, without the weight.
                if self.ig_weight == 1:
                    return losses.train(theta, delta)
                return losses.train(theta, delta.detach() + self.ig_weight * (delta - delta.detach()))

            return blo.value_and_hypergrad(
                upper,
                attack.linearize(anchor, curvature=1 / step),
                params,
                anchor,
                solver=solver,
                gradient=blo.HessianFree(self.curvature),
                on_failure="ignore",
            )
        return train_at(losses, params, self._shifted(attack, losses, params, anchor, step))

    def _shifted(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], anchor: Tensor, step: float
    ) -> Tensor:
        """Return `delta* + u`, and keep nothing else of the solve: training needs the memory."""
        fixed = {name: value.detach() for name, value in params.items()}
        held = blo.LowerProblem(lambda _, delta: losses.attack(fixed, delta), attack.constraint, batched=True)
        # With an empty theta the strategy makes no second backward pass. Its adjoint q is u without `ig_weight`.
        found = blo.value_and_hypergrad(
            lambda _, delta: -losses.attack(fixed, delta).sum(),
            held.linearize(anchor, curvature=1 / step),
            {},
            anchor,
            solver=blo.OneStep(step),
            gradient=blo.HessianFree(self.curvature),
            on_failure="ignore",
        )
        shifted: Tensor = found.z + self.ig_weight * found.state["q"].view_as(found.z)
        return shifted

    def _step(self, threat: Threat) -> float:
        if self.step is not None:
            return self.step
        return 5000 / 255 if threat.eps <= 8 / 255 + 1e-9 else 2000 / 255

"""BETA: the attack raises margins, training lowers a loss (Robey, Latorre, Pappas, Hassani and Cevher, ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import blo
from adv_train import values
from adv_train.methods.base import METHODS, Adversarial
from adv_train.methods.known import train_at
from adv_train.methods.losses import Losses
from adv_train.objectives import Objective, Reduction, reduced
from adv_train.objectives.margin import Margin
from adv_train.threat import Threat
from adv_train.values import Count, Positive


@dataclass(frozen=True, eq=False)
class Towards(Objective):
    """For each sample, the logit of a rival class minus the logit of the true class.

    Attributes:
        rival: the rival class of each sample, shape `(batch,)`.
    """

    rival: Tensor

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        pairs = logits.gather(1, torch.stack((self.rival, y), 1))
        return reduced(pairs[:, 0] - pairs[:, 1], reduction)


@METHODS.register("beta")
@dataclass(frozen=True, kw_only=True)
class BETA(Adversarial):
    """Raise the margins of other classes over the true one, and train at the perturbation with the largest margin.

    An image is misclassified if some other class has a positive margin. The attack therefore maximises the margin of
    one class after the other. Training minimises the cross-entropy, which divided by log 2 is an upper bound of the
    error.

    With m rivals and T steps, a training step costs `2 m T + m + 3` forward passes, and `2 T + 3` with one rival. That
    is 18 by default, 7 with the runner-up alone, and 192 with `steps=10` and all nine rivals of ten classes. Source:
    "Adversarial training should be cast as a non-zero-sum game", Algorithm 2, with sign steps.

    Attributes:
        attack_loss: must be `margin`; the attack maximises it for one class after the other.
        steps: number of steps towards each rival.
        step: step size, in the units of eps; 2.5 eps / steps by default, which is 2/255 for ten steps at 8/255.
        rivals: number of other classes to attack, those with the largest logits at the start; at most all of them.
    """

    attack_loss: Objective = Margin()  # noqa: RUF009  # frozen, so sharing the default is safe
    steps: Count = 2
    step: Positive | None = None
    rivals: Count = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attack_loss, Margin):
            raise values.refused("attack_loss", "`margin` for beta, whose attack raises margins", str(self.attack_loss))

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        fixed = {name: value.detach() for name, value in params.items()}
        step = 2.5 * threat.eps / self.steps if self.step is None else self.step

        def climb(losses: Losses, start: Tensor, steps: int) -> Tensor:
            if steps == 0:
                return start
            problem = blo.LowerProblem(losses.attack, attack.constraint, batched=True)
            solver = blo.ProjectedGradient(step, max_steps=steps, tol=None, direction="sign")
            found: Tensor = blo.argmin(problem, fixed, start, solver=solver, gradient=blo.Zero(), on_failure="ignore")
            return found

        # The margin is that of the runner-up, so one step on the margin is the first step towards the runner-up. The
        # logits of this step also rank the other rivals.
        near = climb(losses, start, 1)
        others = losses.attacked.scatter(1, losses.y[:, None], -torch.inf)
        count = min(self.rivals, others.shape[1] - 1)
        first, *rest = (losses.attacking(Towards(rival)) for rival in others.topk(count).indices.T)
        points = [climb(first, near, self.steps - 1), *(climb(rival, start, self.steps) for rival in rest)]
        delta = points[0]
        if rest:
            with torch.no_grad():
                margins = [-rival.attack(fixed, point) for rival, point in zip((first, *rest), points, strict=True)]
            best = torch.stack(margins).argmax(0)
            delta = torch.stack(points)[best, torch.arange(len(best), device=best.device)]
        return train_at(losses, params, delta)

"""GAT: training on clean images keeps clean and perturbed outputs together (Sriramanan et al., NeurIPS 2020)."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

import blo
from adv_train import ranks
from adv_train.methods.base import METHODS, Adversarial, Mode
from adv_train.methods.coefficients import Coefficient, on_odd_steps, stepped
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Moment
from adv_train.methods.shared_pass import clean_pass
from adv_train.ranks import Share
from adv_train.threat import Threat
from adv_train.values import NotNegative, Positive, Range


@dataclass(frozen=True, kw_only=True)
class Guided(Adversarial):
    """One sign step that also drives the output away from the clean one; training brings the two together.

    Let D be the distance between the outputs on x + z and on x. The attack maximises `attack_loss(x + z)`, and in steps
    with an odd index `attack_loss(x + z) + w D`. Training minimises `train_loss(x) + w D`, on the clean images. As
    published, the attack evaluates the perturbed images in eval mode, but takes the clean output from train mode. The
    attack and training share the pass that computes the clean output, so a step costs 8 forward passes; the published
    code needs 9. Outside a run, w has its final value, and the attack includes `w D`.

    Attributes:
        start: `"uniform"` is +eps/2 or -eps/2 at random for each pixel, clipped to the range of images.
        step: step size, in the units of eps; eps by default.
    """

    mixes = True
    attack_mode: Mode = "eval"
    step: Positive | None = None

    @abc.abstractmethod
    def weight(self, moment: Moment | None) -> Coefficient:
        """Return the weight w."""

    @abc.abstractmethod
    def distance(self, logits: Tensor, clean: Tensor, share: Share) -> Tensor:
        """Return the distance D of each sample, shape `(batch,)`, from outputs of shape `(batch, classes)`.

        Args:
            logits: On x + z.
            clean: On x.
            share: Which part of the batch of all ranks these samples are.
        """

    def draw(self, losses: Losses, threat: Threat) -> Tensor:
        if self.start != "uniform":
            return super().draw(losses, threat)
        signs = ranks.coins(losses.x, generator=losses.generator) * 2 - 1
        return threat.project(losses.x, threat.eps / 2 * signs)

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        weight = self.weight(losses.moment)
        attack_weight = on_odd_steps(weight, losses.moment)

        def lower(theta: dict[str, Any], delta: Tensor) -> Tensor:
            logits = losses.attack_forward(theta["weights"], delta)
            apart = attack_weight * self.distance(logits, theta["logits"], losses.share)
            return -losses.attack_objective(theta["weights"], logits) - apart

        def upper(theta: dict[str, Tensor], delta: Tensor, clean: Tensor) -> Tensor:
            logits = losses.forward(theta, delta)
            losses.logits = logits.detach()
            apart = self.distance(logits, clean, losses.share).mean()
            return losses.train_objective(clean, clean) + weight * apart

        guided = blo.LowerProblem(lower, attack.constraint, batched=True)
        length = threat.eps if self.step is None else self.step
        return clean_pass(losses, params).solve(upper, guided, start, length)


@METHODS.register("gat")
@dataclass(frozen=True, kw_only=True)
class GAT(Guided):
    """Clean cross-entropy plus the squared distance of the probabilities before and after one guided sign step.

    D is `|p(x + z) - p(x)|^2`. The weight w is `coefficient` until a share `late_from` of the run's steps is done, and
    `late_factor * coefficient` from then on. The published run of 100 epochs raises w, and lowers the learning rate,
    after 86 epochs.

    Attributes:
        coefficient: w at the start of the run.
        late_factor: factor by which w grows late in the run.
        late_from: share of the run's steps after which w grows.
    """

    coefficient: NotNegative = 10.0
    late_factor: NotNegative = 4.0
    late_from: Annotated[float, Range(0, 1)] = 0.86

    def weight(self, moment: Moment | None) -> Coefficient:
        return stepped(self.coefficient, self.late_factor * self.coefficient, self.late_from, moment)

    def distance(self, logits: Tensor, clean: Tensor, share: Share) -> Tensor:
        return (logits.softmax(1) - clean.softmax(1)).square().sum(1)

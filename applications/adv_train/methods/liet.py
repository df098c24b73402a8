"""LIET: attacks start from perturbations that do not reveal the label (Pan et al., ICCV 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blo
from adv_train import ranks
from adv_train.methods.base import METHODS, Adversarial
from adv_train.methods.coefficients import rising
from adv_train.methods.known import along
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Sizes, State
from adv_train.methods.shared_pass import start_pass
from adv_train.ranks import Share, drawing_for
from adv_train.threat import Threat
from adv_train.values import Count, NotNegative, Range

Part = Annotated[float, Range(0, 1)]


class Settings(NamedTuple):
    """Published values of the options, and the half width of the noise in units of eps."""

    coefficient: float
    smoothing: float
    least_noise: float
    most_noise: float
    width: float


#: Settings for eps up to 8/255, and for larger eps.
PUBLISHED = (Settings(100.0, 0.6, 0.1, 0.5, 1.0), Settings(20.0, 0.4, 0.0, 1.0, 2.0))


@METHODS.register("liet")
@dataclass(frozen=True, kw_only=True)
class LIET(Adversarial):
    """One sign step from noise mixed with a pattern of the class; training keeps the outputs at both ends together.

    The pattern of a class y is `eps * sign(input gradient of the loss of a grey image with label y)`, in eval mode. The
    attack starts from the pattern of the image's class, with one random sign for the whole batch, in which uniform
    noise replaces each pixel with a probability that is drawn once for the batch. Training minimises the smoothed loss
    at x + z plus w times the Jensen-Shannon divergence between the predictions at the start and at x + z; w rises
    linearly from 0 over the run. Label smoothing gives the share `smoothing` of the label's weight to the other
    classes, with random weights for each image and each loss. Above 8/255 the noise is twice as wide, and
    perturbations are clipped to the range of images but not to the ball.

    Each step renews the patterns of `classes / refresh` classes, rounded up, so every pattern is renewed within
    `refresh` steps. The published code renews all patterns in every twentieth step; here every step does the same work.
    Before its first renewal, and outside a run, a pattern is zero.

    Source: "Mitigating catastrophic overfitting in fast adversarial training via label information elimination".

    Attributes:
        start: `"uniform"` is the start described above.
        coefficient: weight w of the penalty at the end of the run; 100 up to 8/255 and 20 above, as published for
            CIFAR-10.
        smoothing: share of the label's weight that goes to other classes; 0.6 up to 8/255 and 0.4 above, as published.
        least_noise: smallest probability that noise replaces a pixel; 0.1 up to 8/255 and 0 above, as published.
        most_noise: largest probability that noise replaces a pixel; 0.5 up to 8/255 and 1 above, as published.
        refresh: number of steps within which the pattern of every class is renewed.
    """

    trains_on_attack = True

    coefficient: NotNegative | None = None
    smoothing: Part | None = None
    least_noise: Part | None = None
    most_noise: Part | None = None
    refresh: Count = 20

    @property
    def differentiates_once(self) -> bool:
        return False  # the pass at the start is differentiated for the attack, and again for training

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        return {"class_signs": next(model.parameters()).new_zeros(sizes.classes, *sizes.images[1:])}

    def allowed(self, x: Tensor, threat: Threat) -> blo.sets.Set:
        if self._settings(threat).width == 1:
            return super().allowed(x, threat)
        return blo.Box(threat.low - x, threat.high - x, validate=False)

    def draw(self, losses: Losses, threat: Threat) -> Tensor:
        if self.start != "uniform":
            return super().draw(losses, threat)
        x, generator, chosen = losses.x, losses.generator, self._settings(threat)
        wide = chosen.width * threat.eps
        noise = ranks.uniform(x, -wide, wide, generator=generator)
        draws = x.new_empty(2).uniform_(generator=generator)
        share = chosen.least_noise + (chosen.most_noise - chosen.least_noise) * draws[0]
        replaced = ranks.uniform(x, generator=generator) < share
        signs = losses.state["class_signs"][losses.y] if losses.state else torch.zeros_like(x)
        mixed = torch.where(replaced, noise, threat.eps * signs) * torch.where(draws[1] < 0.5, -1, 1)
        return self.allowed(x.flatten(1), threat).project(mixed.flatten(1)).view_as(x)

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        chosen = self._settings(threat)
        kept, weight = 1 - chosen.smoothing, rising(chosen.coefficient, losses.moment)

        def attacked(logits: Tensor) -> Tensor:
            spread = _spread(logits, _others(logits, losses.y, losses.generator))
            return kept * losses.attack_objective(params, logits) + chosen.smoothing * spread

        shared, slope = start_pass(losses, params, start, attacked)
        others = _others(shared.logits, losses.y, losses.generator)

        def upper(theta: dict[str, Tensor], delta: Tensor, near: Tensor) -> Tensor:
            loss, logits = losses.train_and_logits(theta, delta)
            smoothed = kept * loss + chosen.smoothing * _spread(logits, others).mean()
            return smoothed + weight * _jensen_shannon(near, logits)

        out = shared.solve(upper, along(attack, slope), start, threat.eps)
        if losses.state and losses.moment is not None:
            losses.state = {"class_signs": self._renewed(losses, losses.moment.step, params, chosen.smoothing)}
        return out

    def _renewed(self, losses: Losses, step: Tensor, params: dict[str, Tensor], smoothing: float) -> Tensor:
        """Return the gradient signs of all classes after this step has renewed those of some.

        The shape is `(classes, channels, height, width)`.
        """
        signs = losses.state["class_signs"]
        count = math.ceil(len(signs) / self.refresh)
        classes = (step * count + torch.arange(count, device=signs.device)) % len(signs)
        change = torch.zeros_like(signs[:count]).requires_grad_()
        logits = losses.eval_forward({name: value.detach() for name, value in params.items()}, 0.5 + change)
        with drawing_for(losses.generator, Share(count)):
            spread = _spread(logits, _others(logits, classes, losses.generator))
        loss = (1 - smoothing) * F.cross_entropy(logits, classes, reduction="none") + smoothing * spread
        (slope,) = torch.autograd.grad(loss.sum(), change)
        # All ranks take the signs of the first: within a step, BatchNorm's running statistics differ between ranks.
        return signs.index_copy(0, classes, losses.share.ranks.first_of(slope.sign()))

    def _settings(self, threat: Threat) -> Settings:
        published = PUBLISHED[threat.eps > 8 / 255 + 1e-9]
        options = {name: getattr(self, name) for name in published._fields if name != "width"}
        return published._replace(**{name: value for name, value in options.items() if value is not None})


def _others(logits: Tensor, y: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw random weights for the classes other than y; each row sums to 1, shape `(batch, classes)`."""
    weights = ranks.uniform(logits, generator=generator).scatter(1, y[:, None], 0)
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _spread(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy against labels that are class weights, shape `(batch,)`."""
    return -(weights * logits.log_softmax(1)).sum(1)


def _jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean Jensen-Shannon divergence between two batches of predictions, shape `()`, from their logits."""
    # In logarithms, which stay finite where a probability underflows to zero.
    p, q = first.log_softmax(1), second.log_softmax(1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(1).mean() / 2

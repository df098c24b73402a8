"""AWP: any method, with its gradient taken at weights that were moved against it (Wu et al., NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adv_train.data import Batch
from adv_train.errors import UserError
from adv_train.methods.base import Method, Step
from adv_train.methods.moment import Moment, Sizes, State
from adv_train.threat import Threat
from adv_train.values import NotNegative


@dataclass(frozen=True, kw_only=True)
class WeightPerturbed(Method):
    """Let another method find its perturbation, ascend its training objective in the weights, take the gradient there.

    A tensor w of more than one dimension, with gradient g of the training objective at the perturbation found, becomes
    `w + gamma |w| g / |g|` for one gradient; biases and the scales of BatchNorm stay. The optimiser moves w itself, an
    implicit part of the gradient stays that at w, and so do the loss and the logits that are reported. It costs three
    forward passes on top of the method, more where the training objective looks at clean images too.

    The published code lets the optimiser decay the moved weights, and BatchNorm forget the pass at w; here weight decay
    acts on w, and BatchNorm remembers both passes.

    Attributes:
        base: the method.
        gamma: length of the move of each tensor over its norm; 0 is the base alone.
    """

    base: Method
    gamma: NotNegative

    @property
    def differentiates_once(self) -> bool:
        return self.base.differentiates_once

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        return self.base.remember(model, sizes)

    def replays(self) -> int:
        return self.base.replays()

    def __call__(
        self,
        model: nn.Module,
        params: dict[str, Tensor],
        batch: Batch,
        threat: Threat,
        *,
        moment: Moment | None = None,
        state: State | None = None,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Step:
        """Return the base's step with the gradient at the moved weights.

        Raises:
            UserError: when the base does not say what its training objective is.
        """
        step = self.base(model, params, batch, threat, moment=moment, state=state, start=start, generator=generator)
        if self.gamma == 0:
            return step
        if step.objective is None:
            name = type(self.base).__name__
            raise UserError(f"`weight_perturbation` needs a method whose steps have an `objective`; {name} has none.")
        slopes = dict(zip(params, step.direct, strict=True)) if step.implicit else step.grads
        moved = {name: self._moved(value.detach(), slopes[name]).requires_grad_() for name, value in params.items()}
        found = torch.autograd.grad(step.objective(moved), list(moved.values()), materialize_grads=True)
        # Detached, since the zeros that torch 2.7 fills in require grad.
        direct = [slope.detach() for slope in found]
        implicit = step.implicit or [torch.zeros_like(slope) for slope in direct]
        grads = {name: d + i for name, d, i in zip(params, direct, implicit, strict=True)}
        return replace(step, grads=grads, direct=direct)

    def _moved(self, weight: Tensor, slope: Tensor) -> Tensor:
        if weight.ndim <= 1:
            return weight.clone()
        size = slope.norm().clamp(min=torch.finfo(slope.dtype).tiny)  # a vanishing gradient moves nothing
        return weight.add(slope / size * weight.norm(), alpha=self.gamma)

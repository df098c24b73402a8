"""AWP: any method, with its gradient taken at adversarially perturbed weights (Wu et al., NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adv_train.data import Batch
from adv_train.errors import UserError
from adv_train.methods.base import METHODS, Adversarial, Method, Step
from adv_train.methods.moment import Keeps, Moment, Sizes, State
from adv_train.threat import Threat
from adv_train.values import NotNegative


@dataclass(frozen=True, kw_only=True)
class WeightPerturbed(Method):
    """Run another method, ascend its training objective in the weights, and take the gradient at the perturbed weights.

    Let g be the gradient of the training objective in a weight tensor w, at the perturbation that the method has found.
    The gradient for the optimiser is taken at `w + gamma |w| g / |g|`, for all tensors of more than one dimension;
    biases and the scales of BatchNorm are not perturbed. The optimiser updates w itself. The implicit part of the
    gradient, the reported loss and the reported logits are those at w. The perturbation costs three forward passes on
    top of the method, and more if the training objective also uses clean images.

    In the published code, the optimiser decays the perturbed weights, and BatchNorm discards the pass at w; here,
    weight decay acts on w, and BatchNorm's running statistics include both passes.

    Attributes:
        base: the method that finds the perturbation of the images.
        gamma: norm of a tensor's perturbation over the norm of the tensor; 0 is the base method alone.

    Raises:
        UserError: if the training objective uses passes of the attack, and they are in eval mode.
    """

    base: Method
    gamma: NotNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        base = self.base
        if self.gamma > 0 and isinstance(base, Adversarial) and base.trains_on_attack and base.attack_mode == "eval":
            # A second pass in eval mode would use running statistics that the step itself has moved.
            raise UserError(
                f"`weight_perturbation` needs `attack_mode` train for {METHODS.name_of(base)}, whose training "
                "objective uses passes of the attack."
            )

    @property
    def differentiates_once(self) -> bool:
        return self.base.differentiates_once

    @property
    def differentiates_gradients(self) -> bool:
        return self.base.differentiates_gradients

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        return self.base.remember(model, sizes)

    def keeps(self) -> Keeps:
        return self.base.keeps()

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
        """Return the step of the base method, with the gradient at the perturbed weights.

        Raises:
            UserError: if the step of the base method has no `objective`.
        """
        step = self.base(model, params, batch, threat, moment=moment, state=state, start=start, generator=generator)
        if self.gamma == 0:
            return step
        if step.objective is None:
            name = type(self.base).__name__
            raise UserError(f"`weight_perturbation` needs a method whose steps have an `objective`; {name} has none.")
        slopes = dict(zip(params, step.direct, strict=True)) if step.implicit else step.grads
        slopes = dict(zip(slopes, batch.part.means(list(slopes.values())), strict=True))
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

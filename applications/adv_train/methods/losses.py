"""The two objectives of adversarial training on one batch, and the other inputs of a method's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import TypeAlias

import torch
from torch import Tensor, nn

from adv_train.data import Batch
from adv_train.methods.moment import Moment, State
from adv_train.methods.weights import Weights
from adv_train.objectives import Objective, Reduction
from adv_train.ranks import Share
from adv_train.second_derivatives import fast_second_derivatives

#: Maps parameters and a perturbation to a loss of shape `()`.
Upper: TypeAlias = Callable[[dict[str, Tensor], Tensor], Tensor]


class Losses:
    """The attack's and the trainer's objective as functions of the parameters and the perturbation.

    With `as_trained` false, attacks use eval mode; with `twice`, second derivatives of forward passes are fast.

    Attributes:
        x: Images, shape `(batch, channels, height, width)`.
        y: Labels, shape `(batch,)`.
        index: Position of each image in the training split, shape `(batch,)`.
        motion: How augmentation moved the images of the training split.
        moment: Position in the run; None outside a run.
        state: The method's memory; a step replaces it by the memory for the next step. Empty outside a run.
        generator: Source of random numbers, on the images' device.
        share: Which part of the batch of all ranks these samples are.
        mixture: What mixup blended into the images; None without mixup.
        logits: The model's output when `train` was last called, detached.
        upper: The upper objective of this step, set by a method whose upper objective is not just `train`.
        attacked: The model's output when `attack` was last called, detached.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        attack: Objective,
        train: Objective,
        as_trained: bool = True,
        twice: bool = False,
        moment: Moment | None = None,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.x, self.y, self.index, self.motion = batch.x, batch.y, batch.index, batch.motion
        self.generator = generator
        self.share, self.mixture = batch.part, batch.mixture
        self.moment, self.state = moment, state or {}
        self._model, self._attack, self._train = model, attack, train
        self._as_trained, self._twice = as_trained, twice
        self._weights = Weights(model)
        self.logits = self.attacked = batch.x.new_empty(0)
        self.upper: Upper | None = None
        self._clean: Tensor | None = None

    def forward(self, params: dict[str, Tensor], delta: Tensor | None) -> Tensor:
        """Return the model's output at x + delta (at x if delta is None), shape `(batch, classes)`."""
        return self._output(params, self.x if delta is None else self.x + delta)

    def attack_forward(self, params: dict[str, Tensor], delta: Tensor) -> Tensor:
        """Return the model's output at x + delta, with BatchNorm and dropout in the mode of the attack."""
        with nullcontext() if self._as_trained else in_eval_mode(self._model):
            return self.forward(params, delta)

    def eval_forward(self, params: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return the model's output at any images, in eval mode."""
        with in_eval_mode(self._model):
            return self._output(params, images)

    def attack(self, params: dict[str, Tensor], delta: Tensor) -> Tensor:
        """Return the lower objective of each sample, minus the attack's objective; shape `(batch,)`."""
        logits = self.attack_forward(params, delta)
        self.attacked = logits.detach()
        return -self.attack_objective(params, logits)

    def attack_objective(self, params: dict[str, Tensor], logits: Tensor) -> Tensor:
        """Return the attack's objective of each sample, shape `(batch,)`, from the output of `attack_forward`."""
        with nullcontext() if self._as_trained else in_eval_mode(self._model):
            return self._of_labels(self._attack, logits, self._clean_logits(params))

    def train_objective(self, logits: Tensor, clean: Tensor | None) -> Tensor:
        """Return the mean of the training objective, shape `()`, from the outputs at x + delta and at x."""
        return self._of_labels(self._train, logits, clean, "mean")

    def train(self, params: dict[str, Tensor], delta: Tensor) -> Tensor:
        """Return the mean of the training objective at x + delta, shape `()`."""
        return self.train_and_logits(params, delta)[0]

    def train_and_logits(self, params: dict[str, Tensor], delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of the training objective and the logits at x + delta, both differentiable in `params`."""
        clean = self.forward(params, None) if self._train.looks_at_clean else None
        logits = self.forward(params, delta)
        self.logits = logits.detach()
        return self.train_objective(logits, clean), logits

    def _of_labels(
        self, objective: Objective, logits: Tensor, clean: Tensor | None, reduction: Reduction = "none"
    ) -> Tensor:
        """Return an objective; of mixed images, the weighted mean of its values for the two labels."""
        own = objective(logits, self.y, clean, reduction)
        if self.mixture is None:
            return own
        return torch.lerp(objective(logits, self.mixture.y, clean, reduction), own, self.mixture.share)

    def _output(self, params: dict[str, Tensor], images: Tensor) -> Tensor:
        with fast_second_derivatives(self._twice):
            return self._weights(params, images)

    def slope(self, params: dict[str, Tensor], delta: Tensor, *, create_graph: bool = False) -> Tensor:
        """Return the gradient of each sample's attack objective in its perturbation; it has the shape of x.

        It is a constant, or with `create_graph` differentiable in the parameters.
        """
        live = params if create_graph else {name: value.detach() for name, value in params.items()}
        with torch.enable_grad():
            point = delta.detach().requires_grad_()
            total = -self.attack(live, point).sum()
            (found,) = torch.autograd.grad(total, point, create_graph=create_graph)
        return found

    def attacking(self, objective: Objective) -> Losses:
        """Return the losses of an attack with another objective."""
        other = copy(self)
        other._attack = objective
        return other

    def repeated(self, times: int) -> Losses:
        """Return the losses of a batch that holds these samples several times, one whole batch after another."""
        other = copy(self)
        other.x = self.x.repeat(times, *(1,) * (self.x.ndim - 1))
        other.y, other.index, other._clean = self.y.repeat(times), self.index.repeat(times), None
        other.mixture = self.mixture and self.mixture.repeated(times)
        return other

    def part(self, chosen: slice, share: Share) -> Losses:
        """Return the losses of some of the samples; `share` says which part of the batch of all ranks they are."""
        other = copy(self)
        other.x, other.y, other.index = self.x[chosen], self.y[chosen], self.index[chosen]
        other._clean, other.share = None, share
        other.mixture = self.mixture and self.mixture.part(chosen)
        return other

    def _clean_logits(self, params: dict[str, Tensor]) -> Tensor | None:
        """Return the clean logits, or None if the attack's objective does not use them.

        They are differentiable in the parameters if gradients are enabled and a parameter requires them.
        """
        if not self._attack.looks_at_clean:
            return None
        if torch.is_grad_enabled() and any(value.requires_grad for value in params.values()):
            return self.forward(params, None)
        if self._clean is None:  # computed once: they do not depend on the perturbation
            with torch.no_grad():
                self._clean = self.forward(params, None)
        return self._clean


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Use eval mode in the block: BatchNorm uses its running statistics without updating them, and dropout is off."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True

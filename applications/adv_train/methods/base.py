"""What a training method is: a way to turn a batch into a gradient."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

import blo
from adv_train.data import Batch
from adv_train.errors import UserError
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Moment, Sizes, State
from adv_train.objectives import Objective
from adv_train.objectives.cross_entropy import CrossEntropy
from adv_train.registry import Registry
from adv_train.threat import Threat
from adv_train.values import Checked

Start: TypeAlias = Literal["uniform", "gaussian", "zero"]
Mode: TypeAlias = Literal["train", "eval"]
_NEAR = 0.001  # deviation of the noise that TRADES and MART start from


@dataclass(frozen=True, eq=False)
class Step:
    """What a method hands to the optimiser. Nothing in it was read by the host.

    Attributes:
        grads: the gradient of the training objective by parameter name.
        delta: the perturbation trained on, of the images' shape.
        loss: the mean training loss, shape `()`.
        logits: the model's output on the perturbed images, shape `(batch, classes)`.
        direct: the direct part of the gradient, parameter by parameter.
        implicit: the implicit part likewise; empty where there is none.
        state: what the method remembers from now on.
        objective: the training objective at this perturbation as a function of the parameters, shape `()`; None where a
            method has none. It draws nothing: its gradient at the parameters of the step is the direct part.
    """

    grads: dict[str, Tensor]
    delta: Tensor
    loss: Tensor
    logits: Tensor
    direct: Sequence[Tensor] = ()
    implicit: Sequence[Tensor] = ()
    state: State = field(default_factory=dict)
    objective: Callable[[dict[str, Tensor]], Tensor] | None = None

    @cached_property
    def implicit_share(self) -> Tensor:
        """|implicit part| / |direct part| of the gradient, shape `()`; zero where there is no implicit part."""
        if not self.implicit:
            return torch.zeros_like(self.loss)
        norm = torch.nn.utils.get_total_norm
        return norm(self.implicit) / norm(self.direct)


@dataclass(frozen=True, kw_only=True)
class Method(Checked, abc.ABC):
    """A training method; its fields are its options.

    Attributes:
        norms: norms of the threats that it is defined for.
        attacks: whether it trains on perturbed images.
        differentiates_once_with: flags with which it does, where it does not as it is.
    """

    norms: ClassVar[Collection[str]] = ("linf",)
    attacks: ClassVar[bool] = True
    differentiates_once_with: ClassVar[Collection[str]] = ()

    def check_norm(self, norm: str) -> None:
        """Refuse a threat's norm that the method is not defined for.

        Raises:
            UserError: naming the norms that it is defined for.
        """
        if norm not in self.norms:
            name = METHODS.name_of(self)
            raise UserError(f"`norm` must be {' or '.join(self.norms)} for {name}, but is {norm}.")

    @property
    def differentiates_once(self) -> bool:
        """Whether each forward pass is differentiated once at most: no second derivative, no second backward pass."""
        return True

    def check_differentiates_once(self) -> None:
        """Refuse a method that `torch.compile` has no derivatives for.

        Raises:
            UserError: naming what to use instead.
        """
        if not self.differentiates_once:
            own = "".join(f" or {option}" for option in self.differentiates_once_with)
            raise UserError(
                f"`accelerate` compile cannot train {METHODS.name_of(self)} with these options, which differentiates "
                f"a forward pass twice: use graph (on a CUDA device){own}."
            )

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        """Return what the method remembers before the first step; nothing, if it does not say otherwise.

        Args:
            model: On its device, with its first weights.
            sizes: Of the training images and of the batches.
        """
        return {}

    def replays(self) -> int:
        """Return how many optimiser steps are made on one batch, each from a call of its own."""
        return 1

    @abc.abstractmethod
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
        """Return the gradient of one training step. It never waits for the device, and shapes follow the batch alone.

        Args:
            model: used in the mode it is in; train-mode BatchNorm updates its statistics in every forward pass.
            params: the parameters by name.
            batch: what to train on.
            threat: what the attack may do.
            moment: when in training; None outside a run.
            state: what `remember` or the last step returned, whose tensors a step may overwrite; None outside a run.
            start: where the attack starts, of x's shape; None draws the method's own start.
            generator: source of random starts, on x's device.
        """


METHODS: Registry[Method] = Registry("method", "adv_train.methods")


@dataclass(frozen=True, kw_only=True)
class Adversarial(Method):
    """A method that perturbs within a threat: one bilevel problem a step.

    Attributes:
        start: `"uniform"` in the threat's ball, `"gaussian"` with deviation 0.001, both cut to images, or `"zero"`.
        attack_mode: mode of BatchNorm and dropout in the attack: `"train"`, as they are in training, or `"eval"`.
        attack_loss: what the attack maximises.
        train_loss: what training minimises.
    """

    start: Start = "uniform"
    attack_mode: Mode = "train"
    attack_loss: Objective = CrossEntropy()  # noqa: RUF009  # frozen, so sharing the default is safe
    train_loss: Objective = CrossEntropy()  # noqa: RUF009

    def allowed(self, x: Tensor, threat: Threat) -> blo.sets.Set:
        """Return the set that the attack stays in: the threat's."""
        return threat.set(x)

    def draw(self, losses: Losses, threat: Threat) -> Tensor:
        """Return where the attack starts."""
        if self.start == "zero":
            return torch.zeros_like(losses.x)
        if self.start == "gaussian":
            noise = torch.zeros_like(losses.x).normal_(std=_NEAR, generator=losses.generator)
            return threat.project(losses.x, noise)
        return threat.sample(losses.x, losses.generator)

    @abc.abstractmethod
    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        """Solve the bilevel problem of one batch, whose attack minimises the sum of `losses.attack`.

        A method that remembers puts its new memory into `losses.state`, and one that minimises more than `losses.train`
        puts that function into `losses.upper`.
        """

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
        losses = Losses(
            model,
            batch,
            attack=self.attack_loss,
            train=self.train_loss,
            as_trained=self.attack_mode == "train",
            moment=moment,
            state=state,
            generator=generator,
        )
        if start is None:
            start = self.draw(losses, threat)
        attack = blo.LowerProblem(losses.attack, self.allowed(batch.x, threat), batched=True)
        out = self.solve(attack, losses, params, start, threat)
        implicit = list(out.implicit.values()) if out.report.depends_on_theta else []
        # Taken out: a function that refers to the losses, held by them, would keep the batch until it is collected.
        upper, losses.upper = losses.upper or losses.train, None

        def objective(theta: dict[str, Tensor]) -> Tensor:
            return upper(theta, out.z)

        logits, direct = losses.logits, out.report.direct_parts
        return Step(out.grad, out.z, out.value, logits, direct, implicit, losses.state, objective)

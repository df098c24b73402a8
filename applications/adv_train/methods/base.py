"""The interface of a training method, which turns a batch into a gradient."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

import blo
from adv_train import ranks
from adv_train.data import Batch
from adv_train.errors import UserError
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Keeps, Moment, Sizes, State
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
    """The result of one training step. All tensors stay on the device: making a `Step` never waits for it.

    Attributes:
        grads: the gradient of the training objective by parameter name.
        delta: the perturbation that the model was trained on, with the shape of the images.
        loss: the mean training loss, shape `()`.
        logits: the model's output on the perturbed images, shape `(batch, classes)`.
        direct: the direct part of the gradient, one tensor per parameter.
        implicit: the implicit part, one tensor per parameter; empty if the method has no implicit gradient.
        state: the method's memory for the next step.
        objective: the training objective at this perturbation as a function of the parameters, shape `()`; None if the
            method does not provide it. It draws no random numbers, so its gradient at the parameters of the step is
            the direct part.
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
        norms: the norms for which the method is defined.
        attacks: whether the method trains on perturbed images.
        mixes: whether the method can train on images that mixup has blended: it uses labels in its objectives alone,
            and remembers nothing about single images.
        differentiates_once_with: command-line flags that make `differentiates_once` true where it is false by default.
    """

    norms: ClassVar[Collection[str]] = ("linf",)
    attacks: ClassVar[bool] = True
    mixes: ClassVar[bool] = False
    differentiates_once_with: ClassVar[Collection[str]] = ()

    def check_norm(self, norm: str) -> None:
        """Check that the method is defined for this norm of the threat.

        Raises:
            UserError: if it is not; the message names the norms for which the method is defined.
        """
        if norm not in self.norms:
            name = METHODS.name_of(self)
            raise UserError(f"`norm` must be {' or '.join(self.norms)} for {name}, but is {norm}.")

    def check_threat(self, threat: Threat) -> None:
        """Check that the method is defined for this threat.

        Raises:
            UserError: if it is not defined for the norm, or attacks and the radius is 0.
        """
        self.check_norm(threat.norm)
        if self.attacks and threat.eps == 0:
            name = METHODS.name_of(self)
            raise UserError(f"`eps` must be above 0 for {name}: an attack of radius 0 is --method standard.")

    def check_mixes(self) -> None:
        """Check that the method can train with mixup.

        Raises:
            UserError: if it cannot; the message names the methods that can.
        """
        if not self.mixes:
            able = [name for name in METHODS.names() if getattr(METHODS.find(name), "mixes", False)]
            raise UserError(
                f"`mixup` must be 0 for {METHODS.name_of(self)}, which looks at the label or the memory of single "
                f"images; it can be used with {', '.join(able)}."
            )

    def check_classes(self, classes: int) -> None:
        """Check that the objectives of the method are defined for so many classes.

        Raises:
            UserError: if one is not.
        """
        for value in vars(self).values():
            if isinstance(value, Objective):
                value.check_classes(classes)

    @property
    def differentiates_once(self) -> bool:
        """Whether each forward pass is differentiated once at most: no second derivative, no second backward pass."""
        return True

    @property
    def differentiates_gradients(self) -> bool:
        """Whether the method differentiates a gradient of the network, which is a second derivative."""
        return False

    def check_differentiates_once(self) -> None:
        """Check that `torch.compile` supports the derivatives that the method needs.

        Raises:
            UserError: if it does not; the message says what to use instead.
        """
        if not self.differentiates_once:
            own = "".join(f" or {option}" for option in self.differentiates_once_with)
            raise UserError(
                f"`accelerate` compile cannot train {METHODS.name_of(self)} with these options, because the method "
                f"differentiates a forward pass twice: use graph (on a CUDA device){own}."
            )

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        """Return the method's memory before the first step; by default a method has no memory.

        Args:
            model: The model with its initial weights, on its device.
            sizes: Sizes of the training images and of the batches.
        """
        return {}

    def keeps(self) -> Keeps:
        """Return what the rows of the memory belong to; by default the memory belongs to the run."""
        return "run"

    def replays(self) -> int:
        """Return the number of optimiser steps on one batch; the method is called once for each."""
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
        """Return the gradient of one training step.

        The call never waits for the device, and the shapes of all tensors depend on the shape of the batch alone.

        Args:
            model: the model, used in its present mode; in train mode, BatchNorm updates its running statistics in
                every forward pass.
            params: the parameters by name.
            batch: the batch to train on.
            threat: the perturbations that the attack may choose from.
            moment: the position in the run; None outside a run.
            state: the memory that `remember` or the previous step returned; None outside a run. The step may overwrite
                its tensors.
            start: the perturbation from which the attack starts, with the shape of x; None draws the method's own
                start.
            generator: source of random numbers, on the device of x.
        """


METHODS: Registry[Method] = Registry("method", "adv_train.methods")


def near(losses: Losses) -> Tensor:
    """Draw the noise of the start `"gaussian"`, not yet clipped to the range of images."""
    return ranks.normal(losses.x, _NEAR, generator=losses.generator)


@dataclass(frozen=True, kw_only=True)
class Adversarial(Method):
    """A method that trains on perturbations within a threat; each step solves one bilevel problem.

    Attributes:
        start: start of the attack: `"uniform"` in the threat's ball, `"gaussian"` with standard deviation 0.001 (both
            clipped to the range of images), or `"zero"`.
        attack_mode: mode of BatchNorm and dropout in the attack: `"train"`, as they are in training, or `"eval"`.
        attack_loss: what the attack maximises.
        train_loss: what training minimises, with options as in `trades(beta=1)`; see `adv-train list objectives`.
        trains_on_attack: whether the training objective uses passes of the attack, in the mode of the attack.
    """

    trains_on_attack: ClassVar[bool] = False

    start: Start = "uniform"
    attack_mode: Mode = "train"
    attack_loss: Objective = CrossEntropy()  # noqa: RUF009  # frozen, so sharing the default is safe
    train_loss: Objective = CrossEntropy()  # noqa: RUF009

    def allowed(self, x: Tensor, threat: Threat) -> blo.sets.Set:
        """Return the set that the attack stays in; by default the set of the threat."""
        return threat.set(x)

    def draw(self, losses: Losses, threat: Threat) -> Tensor:
        """Return the perturbation from which the attack starts."""
        if self.start == "zero":
            return torch.zeros_like(losses.x)
        if self.start == "gaussian":
            return threat.project(losses.x, near(losses))
        return threat.sample(losses.x, losses.generator)

    @abc.abstractmethod
    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        """Solve the bilevel problem of one batch, in which the attack minimises the sum of `losses.attack`.

        A method with a memory assigns the new memory to `losses.state`. A method whose upper objective is not just
        `losses.train` assigns that objective to `losses.upper`.
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
            twice=self.differentiates_gradients,
            moment=moment,
            state=state,
            generator=generator,
        )
        if start is None:
            start = self.draw(losses, threat)
        attack = blo.LowerProblem(losses.attack, self.allowed(batch.x, threat), batched=True)
        out = self.solve(attack, losses, params, start, threat)
        implicit = list(out.implicit.values()) if out.report.depends_on_theta else []
        # `upper` may refer to `losses`: left there, it would close a reference cycle, and the batch would stay in
        # memory until the garbage collector runs.
        upper, losses.upper = losses.upper or losses.train, None

        def objective(theta: dict[str, Tensor]) -> Tensor:
            return upper(theta, out.z)

        logits, direct = losses.logits, out.report.direct_parts
        return Step(out.grad, out.z, out.value, logits, direct, implicit, losses.state, objective)

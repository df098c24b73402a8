"""What a training method is: a way to turn a batch into a gradient."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

import blo
from adv_train.errors import UserError
from adv_train.methods.losses import Losses
from adv_train.methods.pixels import PixelBox

Start: TypeAlias = Literal["uniform", "zero"]


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
    """

    grads: dict[str, Tensor]
    delta: Tensor
    loss: Tensor
    logits: Tensor
    direct: Sequence[Tensor] = ()
    implicit: Sequence[Tensor] = ()

    @cached_property
    def implicit_share(self) -> Tensor:
        """|implicit part| / |direct part| of the gradient, shape `()`; zero where there is no implicit part."""
        if not self.implicit:
            return torch.zeros_like(self.loss)
        norm = torch.nn.utils.get_total_norm
        return norm(self.implicit) / norm(self.direct)


@dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """A training method at one attack budget.

    Attributes:
        eps: largest change of a pixel, in the unit of images in [0, 1].
    """

    eps: float

    @abc.abstractmethod
    def __call__(
        self,
        model: nn.Module,
        params: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Step:
        """Return the gradient of one training step.

        Args:
            model: used in the mode it is in; train-mode BatchNorm updates its statistics in every forward pass.
            params: the parameters by name.
            x: images in [0, 1], shape `(batch, channels, height, width)`.
            y: labels, shape `(batch,)`.
            start: where the attack starts, of x's shape; None draws the method's own start.
            generator: source of random starts, on x's device.
        """


@dataclass(frozen=True, kw_only=True)
class Adversarial(Method):
    """A method that perturbs within `|delta| <= eps`, `0 <= x + delta <= 1`: one bilevel problem a step.

    Attributes:
        start: `"uniform"` in the eps-ball, clipped to images, or `"zero"`.
    """

    start: Start = "uniform"

    def __post_init__(self) -> None:
        one_of("start", self.start, ("uniform", "zero"))

    @abc.abstractmethod
    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor
    ) -> blo.Hypergradient:
        """Solve the bilevel problem of one batch whose attack maximises the summed loss."""

    def __call__(
        self,
        model: nn.Module,
        params: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Step:
        # Images lie in [0, 1], so the box is never empty; validating it would make the host wait in every step.
        box = PixelBox.around(x, self.eps, 0.0, 1.0, validate=False)
        if start is None:
            start = torch.zeros_like(x)
            if self.start == "uniform":
                start = box.project(start.uniform_(-self.eps, self.eps, generator=generator))
        losses = Losses(model, x, y, generator)
        attack = blo.LowerProblem(losses.attack, box, batched=True)
        out = self.solve(attack, losses, params, start)
        implicit = [part for part in out.report.implicit_parts if part is not None]
        return Step(out.grad, out.z, out.value, losses.logits, out.report.direct_parts, implicit)


def one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Refuse a choice that does not exist.

    Raises:
        UserError: naming the option and the choices.
    """
    if value not in valid:
        raise UserError(f"`{name}` must be one of {', '.join(valid)}, but is {value!r}.")


def positive(name: str, value: float) -> None:
    """Refuse what is not a positive number.

    Raises:
        UserError: naming the option.
    """
    if not 0 < value < float("inf"):
        raise UserError(f"`{name}` must be a positive number, but is {value}.")

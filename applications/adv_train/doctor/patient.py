"""The model that is examined, with all that is known of it and of how it was judged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn

from adv_train.attacks import PGD, Attack
from adv_train.attacks.judging import Judging, adapted, frozen, full_resolution, predict, suitable_threads
from adv_train.attacks.room import Forward
from adv_train.data import Split
from adv_train.doctor.base import NotCheckedError
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation, collapse
from adv_train.threat import Norm, Threat

STEPS: Final = 20
RESTARTS: Final = 2
"""Of the PGD that stands for attacks by gradients: enough where gradients lead anywhere."""


@dataclass(frozen=True, eq=False)
class Patient:
    """A model, images to look at it with, and its records.

    Attributes:
        model: As it was handed in, mode included; checks hand it back so.
        x: Images ``(n, C, H, W)``, floating point, meant to be in [0, 1], on the model's device.
        y: Labels ``(n,)``, int64.
        norm: Of the attacks.
        eps: Their budget, as it was said: it may be out of range.
        train: What the model was trained on, if that is known.
        test: The whole test split, if that is known.
        statistics: Mean and standard deviation of each channel over the training images, if they are known.
        trained: What the model was trained for, if that is known.
        records: Evaluations of these weights.
        history: Record of each epoch of its training.
        attacked: Whether it was trained on perturbed images.
        judge: The command that judges it, without attacks and budget; empty for a module in Python.
        checkpoint: Which file of a run it comes from; empty otherwise.
        judging: Seed of everything that is drawn, and the other settings of every attack.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    norm: Norm
    eps: float
    train: Split | None = None
    test: Split | None = None
    statistics: tuple[Sequence[float], Sequence[float]] | None = None
    trained: Threat | None = None
    records: Sequence[Evaluation] = ()
    history: Sequence[Mapping[str, Any]] = ()
    attacked: bool = True
    judge: str = ""
    checkpoint: str = ""
    judging: Judging = Judging()

    @contextmanager
    def forward(self) -> Iterator[Forward]:
        """Hold the model in eval mode, and give the function from images to logits."""
        with frozen(self.model), suitable_threads(self.model, self.x):
            yield self.judging.fitted(adapted(self.model, self.x), full_resolution(self.x))[0]

    def predict(self, images: Tensor) -> Tensor:
        """Give the class of each image ``(N,)`` in eval mode, -1 where the logits are not finite."""
        with self.forward() as forward:
            return predict(forward, images, self.judging.batch_size)

    def logits(self, images: Tensor) -> Tensor:
        """Give the logits of images in eval mode, without a graph."""
        with self.forward() as forward, torch.no_grad():
            return torch.cat([forward(part) for part in images.split(self.judging.batch_size)])

    def batches(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cut images and their labels into batches of one forward pass."""
        size = self.judging.batch_size
        return list(zip(x.split(size), y.split(size), strict=True))

    def generator(self) -> torch.Generator:
        """Give a fresh source of randomness on the CPU."""
        return torch.Generator().manual_seed(self.judging.seed)

    @cached_property
    def answers(self) -> Tensor:
        """Class of each image in eval mode."""
        return self.predict(self.x)

    @property
    def right(self) -> Tensor:
        """Whether each image is classified correctly in eval mode."""
        return self.answers == self.y

    @cached_property
    def threat(self) -> Threat:
        """What the attacks may do.

        Raises:
            NotCheckedError: When the budget or the images are out of range, so that nothing can be attacked.
        """
        self.check_range()
        try:
            found = Threat(self.norm, self.eps)
            found.check_images(self.x.shape[1:])
        except UserError:
            raise NotCheckedError(f"eps {self.eps:g} is no budget in {self.norm} for images in [0, 1]") from None
        if self.eps == 0:
            raise NotCheckedError("eps is 0, so nothing is attacked")
        return found

    def check_range(self) -> None:
        """Refuse images that are not in [0, 1].

        Raises:
            NotCheckedError: Says what they span.
        """
        low, high = float(self.x.min()), float(self.x.max())
        if not 0 <= low <= high <= 1:
            raise NotCheckedError(f"the images span [{low:.3g}, {high:.3g}] and not [0, 1]")

    @cached_property
    def survivors(self) -> Tensor:
        """Whether each image withstands PGD.

        Raises:
            NotCheckedError: When PGD cannot attack this model.
        """
        return self.robust(PGD(STEPS, RESTARTS), self.threat)

    def robust(self, attack: Attack, threat: Threat) -> Tensor:
        """Give whether each image withstands an attack; its own warnings are left to the checks.

        Raises:
            NotCheckedError: When the attack does not judge this model, or its predictions have collapsed.
        """
        if collapse(self.y.cpu().numpy(), self.answers.cpu().numpy()):
            raise NotCheckedError("the predictions have collapsed on few classes (see `collapse`)")
        if not bool(self.right.any()):
            raise NotCheckedError("no image is classified correctly")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                found = attack.judge(self.model, self.x, self.y, threat, self.judging)
            except UserError as error:
                raise NotCheckedError(str(error)) from None
            except RuntimeError as error:
                if "not finite" not in str(error):
                    raise
                raise NotCheckedError("gradients are not finite (see `gradients`)") from None
        robust: Tensor = found.robust
        return robust

    def left(self) -> tuple[Tensor, Tensor]:
        """Give the images that withstand PGD, and their labels.

        Raises:
            NotCheckedError: When PGD breaks every image, or cannot judge this model.
        """
        left = self.survivors
        if not bool(left.any()):
            raise NotCheckedError(f"PGD breaks every image of {len(self.x)}, so it overlooks none")
        return self.x[left], self.y[left]

    def share_of(self, flags: Tensor) -> str:
        """Write how often something holds, as `12 of 300 (4.0 %)`."""
        count, n = int(flags.sum()), len(flags)
        return f"{count} of {n} ({count / max(n, 1):.1%})"

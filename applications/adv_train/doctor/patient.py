"""The model that the doctor examines, with its images, training data, records and history."""

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
"""Steps and restarts of the PGD with which the checks compare; they are enough if the gradients are sound."""


@dataclass(frozen=True, eq=False)
class Patient:
    """A model, images to examine it with, and its records.

    Attributes:
        model: The model, in the mode in which the user passed it; checks do not change its state.
        x: Images ``(n, C, H, W)``, floating point, on the model's device; they should be in [0, 1].
        y: Labels ``(n,)``, int64.
        norm: Norm of the attacks.
        eps: Budget of the attacks as the user gave it; it may be out of range.
        train: Training images of the model, if they are known.
        test: The whole test split, if it is known.
        statistics: Mean and standard deviation of each channel over the training images, if they are known.
        trained: The threat of training, if it is known.
        records: Evaluations of these weights.
        history: Record of each epoch of the training.
        attacked: Whether the model was trained on perturbed images.
        judge: The command that evaluates the model, quoted for a shell, without attacks and budget; empty for a module
            in Python.
        checkpoint: Name of the checkpoint file of a run; empty for other models.
        judging: Seed of all random numbers, and the other settings of every attack.
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
        """Put the model in eval mode within the block, and yield the function from images to logits."""
        with frozen(self.model), suitable_threads(self.model, self.x):
            yield self.judging.fitted(adapted(self.model, self.x), full_resolution(self.x))[0]

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each image ``(N,)`` in eval mode, -1 where the logits are not finite."""
        with self.forward() as forward:
            return predict(forward, images, self.judging.batch_size)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of images in eval mode, without a graph."""
        with self.forward() as forward, torch.no_grad():
            return torch.cat([forward(part) for part in images.split(self.judging.batch_size)])

    def batches(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split images and their labels into batches for one forward pass each."""
        size = self.judging.batch_size
        return list(zip(x.split(size), y.split(size), strict=True))

    def generator(self) -> torch.Generator:
        """Return a new generator on the CPU, with the seed of the doctor."""
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
        """The threat of the attacks.

        Raises:
            NotCheckedError: If the budget or the images are out of range, or eps is 0, so no attack is possible.
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
        """Check that the images are in [0, 1].

        Raises:
            NotCheckedError: If they are not; the message gives their range.
        """
        low, high = float(self.x.min()), float(self.x.max())
        if not 0 <= low <= high <= 1:
            raise NotCheckedError(f"the images span [{low:.3g}, {high:.3g}], not [0, 1]")

    @cached_property
    def survivors(self) -> Tensor:
        """Whether each image withstands PGD.

        Raises:
            NotCheckedError: If PGD cannot attack this model.
        """
        return self.robust(PGD(STEPS, RESTARTS), self.threat)

    def robust(self, attack: Attack, threat: Threat) -> Tensor:
        """Return whether each image withstands an attack; the attack's own warnings are suppressed.

        Raises:
            NotCheckedError: If the attack does not support this model, the predictions have collapsed, no image is
                classified correctly, or gradients are not finite.
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
        """Return the images that withstand PGD, and their labels.

        Raises:
            NotCheckedError: If PGD breaks every image, or cannot attack this model.
        """
        left = self.survivors
        if not bool(left.any()):
            raise NotCheckedError(f"PGD breaks all {len(self.x)} images, so it overlooks none")
        return self.x[left], self.y[left]

    def share_of(self, flags: Tensor) -> str:
        """Format how many flags are true, as in `12 of 300 (4.0%)`."""
        count, n = int(flags.sum()), len(flags)
        return f"{count} of {n} ({count / max(n, 1):.1%})"

"""Adversarial images made on another model, tried on the judged model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from adv_train.attacks.ascent import Climb, Steps, start_of, untargeted
from adv_train.attacks.base import ATTACKS, GRADIENT, Attack, Verdicts
from adv_train.attacks.checks import check_budget, check_samples, checked
from adv_train.attacks.geometry import GEOMETRIES
from adv_train.attacks.judging import Judging, adapted, frozen, full_resolution, predict, progress_bar, suitable_threads
from adv_train.digests import digest
from adv_train.errors import UserError
from adv_train.ranks import Share
from adv_train.threat import Threat
from adv_train.values import Count, Positive, refused, text


@dataclass(frozen=True, eq=False)
class Source:
    """The model on which a transfer attack makes its images.

    Attributes:
        name: Where the model comes from, for the record: a run folder or a checkpoint of a run.
        model: The model itself; None until it is loaded.
    """

    name: str
    model: nn.Module | None = None

    def __str__(self) -> str:
        return self.name

    @classmethod
    def read(cls, value: object, name: str) -> Self:
        """Return the source for a source, a model, or the path of a run as text."""
        if isinstance(value, cls):
            return value
        if isinstance(value, nn.Module):
            return cls(type(value).__name__, value)
        if not isinstance(value, str):
            raise refused(name, "a run folder, a checkpoint of a run, or a model", value)
        return cls(text(value, name))


@ATTACKS.register("transfer")
@dataclass(frozen=True)
class Transfer(Attack):
    """PGD on another model, `source`; the judged model classifies the images that it makes.

    The attack uses no gradient of the judged model, so masked gradients do not hinder it. If it breaks more samples
    than PGD on the judged model, do not trust that model's gradients. Otherwise it is much weaker than an attack on the
    judged model itself. A sample is broken if the judged model misclassifies the image of any restart.

    Attributes:
        source: Run folder, or checkpoint file of a run, that holds the other model; in Python also the model itself.
        steps: Steps of each restart, at least 1.
        restarts: Random starts, at least 1.
        step: Length of a step, as for `PGD`.

    Raises:
        UserError: If an option is out of its range.
    """

    source: Source | None = None
    steps: Count = 50
    restarts: Count = 1
    step: Positive | None = None

    def judge(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, judging: Judging) -> Verdicts:
        """Attack every image; a sample that a restart broke is not attacked again."""
        check_samples(x, y, threat)
        source = self._model()
        given, x = x, full_resolution(x)
        images, steps = x.clone(), Steps(self.steps, self.step)
        generator = torch.Generator().manual_seed(judging.seed)
        with frozen(model), frozen(source), suitable_threads(source, x):
            judge, most = judging.fitted(adapted(model, given), x)
            maker, size = judging.fitted(adapted(source, given), x)
            climb = Climb(maker, GEOMETRIES[threat.norm], threat, steps, untargeted)
            predicted = predict(judge, x, most)
            robust, share = predicted == y, Share(len(x), judging.ranks)
            own = torch.arange(len(x), device=x.device)[share.rows]
            with progress_bar("transfer", self.restarts * len(own), "img", judging.progress) as bar:
                for restart in range(self.restarts):
                    start = start_of(x, threat, generator)
                    for batch in own[robust[own]].split(size):
                        if len(batch) == 0:
                            continue
                        with torch.no_grad():
                            clean = checked(maker(x[batch]), len(batch))
                        images[batch] = climb(start[batch], x[batch], y[batch], clean)[0]
                        predicted[batch] = predict(judge, images[batch], size)
                        bar.update(len(batch))
                    robust = predicted == y
                    bar.update((restart + 1) * len(own) - bar.n)
        check_budget(images, x, threat)
        images, predicted = (share.whole_of(found[share.rows]) for found in (images, predicted))
        return Verdicts(predicted == y, images, predicted, self.settings(threat, judging.batch_size))

    def settings(self, threat: Threat, batch_size: int) -> dict[str, Any]:
        """Return the options, a digest of the source's weights, and the length of a step."""
        return {"source_weights": digest(self._model().state_dict())[:16], **self.defining(threat)}

    def defining(self, threat: Threat) -> dict[str, Any]:
        """Return the options and the length of a step; the source need not be loaded."""
        told = Steps(self.steps, self.step).told(threat)
        return {"source": str(self.source), "steps": self.steps, "restarts": self.restarts, **told}

    def cost(self, clean: float, robust: float, classes: int, threat: Threat) -> float:
        """Return the forward passes for each image if none breaks and the source is as large as the judged model."""
        return clean * self.restarts * (2 + GRADIENT * self.steps)

    def bound(self, load: Callable[[str], nn.Module]) -> Transfer:
        """Return this attack with its source loaded, if the source is only a name so far."""
        if self.source is None or self.source.model is not None:
            return self
        return replace(self, source=Source(self.source.name, load(self.source.name)))

    def check(self, x: Tensor, classes: int, threat: Threat) -> None:
        """Check that there is a source, which takes these images and has as many classes as the judged model.

        Raises:
            UserError: If it does not; the message gives the reason.
        """
        source = self._model()
        try:
            with torch.no_grad(), frozen(source):
                found = checked(adapted(source, x)(full_resolution(x[:1])), 1).shape[1]
        except RuntimeError as error:
            size = " x ".join(map(str, x.shape[1:]))
            reason = str(error).partition("\n")[0]
            raise UserError(f"The source `{self.source}` does not take images of {size}: {reason}.") from error
        if found != classes:
            raise UserError(f"The source `{self.source}` has {found} classes, but the judged model has {classes}.")

    def _model(self) -> nn.Module:
        if self.source is None:
            raise UserError("A transfer attack needs the run whose model makes its images: transfer(source=RUN).")
        if self.source.model is None:
            raise UserError(
                f"The source `{self.source}` is not loaded: give the model itself, "
                "such as Transfer(source=adv_train.load_model(RUN))."
            )
        return self.source.model

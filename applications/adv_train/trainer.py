"""One epoch: steps of a method with an optimiser, then clean and robust accuracy on the validation split."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adv_train import attacks, averaging, data, measures, models
from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.data.split import to_unit_range
from adv_train.data.stratified import stratified_head
from adv_train.methods import Moment, Sizes
from adv_train.precision import computed_in
from adv_train.ranks import ALONE, Ranks, Share, Stream
from adv_train.ranks.norm import synchronised
from adv_train.schedules import cycled_momentum, learning_rate, warmed_up
from adv_train.spread import Spread, met
from adv_train.state import TrainingState

_VALIDATION_BATCH = 500

_ALIGNED = 256
"""Validation images, at most, on which gradient alignment is measured: 4 F for each of them after an epoch."""


class Trainer:
    """A model, its optimiser and its data, moved one epoch at a time.

    Args:
        config: What to train.
        dataset: On the device that trains.
        device: That device.
        ranks: Those that train together, each with a part of every batch; their results are the same.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.config = config
        self.dataset = dataset
        self.device = device
        arguments: dict[str, Any] = dataset.model_arguments()
        model = models.create(config.model.name, **arguments, seed=config.training.seed, **config.model.options)
        if config.model.init is not None:
            models.load_weights(model, Path(config.model.init), config.model.init_normalisation)
        model = model.to(device)
        if config.compute.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if config.compute.sync_batchnorm:
            synchronised(model)
        self.method = config.full_method
        self.replays = self.method.replays()
        bounds = data.batch_bounds(len(dataset.train), config.training.batch_size, ranks.size)
        self.steps = self.replays * len(bounds)
        most = Share(max(stop - start for start, stop in bounds), ranks)
        sizes = Sizes(dataset.train.images.shape, dataset.classes, len(most))
        averages = config.training.ema is not None or config.training.average_from is not None
        self.state = TrainingState(
            model,
            config.optimizer.create(model.parameters()),
            self.method.remember(model, sizes),
            copy.deepcopy(model).eval().requires_grad_(False) if averages else None,
            Spread(self.method.keeps(), most.whole, ranks),
        )

    def train_epoch(
        self, epoch: int, count_step: Callable[[], None], measure: Callable[[Tensor, int], None] | None = None
    ) -> dict[str, Any]:
        """Go once through the training split.

        Args:
            epoch: Number of the epoch, from 0; with the seed it fixes all randomness.
            count_step: Called after every step.
            measure: Called then with the sum of the losses of the epoch's images so far, a tensor on the device, and
                the number of images of the step.

        Returns:
            Learning rate of the last step, mean loss, and mean share of the implicit gradient; during the warm-up of
            eps also the epoch's eps.
        """
        generator = data.epoch_generator(self.config.training.seed, epoch, self.device)
        noise = data.epoch_generator(self.config.training.seed, epoch, self.device, purpose="method")
        # For layers such as dropout, which know no other generator: no two ranks drop alike.
        torch.manual_seed((generator.initial_seed() + self.ranks.rank) % 2**63)
        parameters: dict[str, Tensor] = {
            name: value for name, value in self.state.model.named_parameters() if value.requires_grad
        }
        self.state.model.train()
        eps = warmed_up(self.config.threat.eps, epoch, self.config.training.eps_warmup)
        threat = replace(self.config.threat, eps=eps)
        # Sums stay on the device: reading one number a step would make the host wait for the device every time.
        loss = torch.zeros((), device=self.device)
        share = torch.zeros((), device=self.device)
        batches = data.batches(
            self.dataset.train,
            self.config.training.batch_size,
            generator=generator,
            augment=self.dataset.augment,
            ranks=self.ranks,
        )
        seen: list[Tensor] = []
        moment = Moment(*(torch.tensor(n, device=self.device) for n in (epoch * self.steps, self.total, epoch)))
        replayed = (batch for batch in batches for _ in range(self.replays))
        for index, batch in enumerate(replayed):
            number = epoch * self.steps + index
            self._set_rates(number)
            part = noise.share = batch.share or Share(len(batch.y))
            with computed_in(self.config.compute.precision, self.device):
                step = self.method(
                    self.state.model,
                    parameters,
                    batch,
                    threat,
                    moment=moment,
                    state=self.state.memory,
                    generator=noise,
                )
            step = met(step, part, self.state.model)
            for name, parameter in parameters.items():
                parameter.grad = step.grads[name]
            if self.config.optimizer.clip is not None:
                nn.utils.clip_grad_norm_(parameters.values(), self.config.optimizer.clip)
            self.state.optimizer.step()
            self._average(number)
            self.state.memory = step.state
            moment.step.add_(1)
            loss += step.loss.detach() * part.whole
            share += step.implicit_share.detach()
            seen.append(batch.index)
            count_step()
            if measure is not None:
                measure(loss, part.whole)
        self.state.spread.exchange(self.state.memory, torch.cat(seen))
        mean_share = float(share) / self.steps
        return {
            "lr": self.state.optimizer.param_groups[0]["lr"],
            "loss": float(loss) / (self.replays * len(self.dataset.train)),
            # 0/0 where the direct part vanishes: JSON has no NaN.
            "implicit_share": mean_share if math.isfinite(mean_share) else None,
            **({"eps": eps} if epoch < self.config.training.eps_warmup else {}),
        }

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.config.training.epochs * self.steps

    def validate(self) -> dict[str, float | None]:
        """Measure clean accuracy and accuracy under PGD on the validation split, from the same noise in every epoch.

        The model is the average of the weights, where there is one.

        Returns:
            ``val_sa`` and ``val_ra``; ``val_fgsm``, the accuracy after one step of an attack; ``val_top_class``, the
            share of the images that get the most frequent answer; and ``val_alignment``, the gradient alignment on a
            fixed choice of at most 256 of the images, within the whole eps: None where no image has a finite gradient.
        """
        model = self.state.judged.eval()
        generator = Stream(self.device)
        generator.manual_seed(0)
        robust, stepped, clean = torch.zeros(3, dtype=torch.int64, device=self.device)
        classes = torch.zeros(self.dataset.classes, dtype=torch.int64, device=self.device)
        for images, labels in data.ordered_batches(self.dataset.validation, _VALIDATION_BATCH):
            share = generator.share = Share(len(labels), self.ranks)
            x, y = images[share.rows], labels[share.rows]
            if len(y) == 0:
                continue
            with computed_in(self.config.compute.precision, self.device):
                with torch.no_grad():
                    answers = model(x).argmax(1)
                survived, _ = attacks.pgd(
                    model,
                    x,
                    y,
                    eps=self.config.threat.eps,
                    norm=self.config.threat.norm,
                    steps=self.config.training.validation_steps,
                    restarts=1,
                    generator=generator,
                )
                stepped += (measures.survives_one_step(model, x, y, self.config.threat) & (answers == y)).sum()
            robust += survived.sum()
            clean += (answers == y).sum()
            classes += answers.bincount(minlength=len(classes))
        samples = len(self.dataset.validation)
        counts = self.ranks.add(torch.cat([torch.stack([robust, stepped, clean]), classes])).tolist()
        return {
            "val_sa": counts[2] / samples,
            "val_ra": counts[0] / samples,
            "val_fgsm": counts[1] / samples,
            "val_top_class": max(counts[3:]) / samples,
            # Last, and from a generator of its own: what is measured above is the same without it. On all ranks alike.
            "val_alignment": self._alignment(model),
        }

    def _alignment(self, model: nn.Module) -> float | None:
        split = self.dataset.validation
        if len(split) > _ALIGNED:
            split = split.subset(stratified_head(split.labels.cpu(), _ALIGNED).to(self.device))
        with computed_in(self.config.compute.precision, self.device):
            found = measures.alignment(
                model, to_unit_range(split.images), split.labels, self.config.threat, torch.Generator().manual_seed(0)
            )
        return found if math.isfinite(found) else None

    def _set_rates(self, step: int) -> None:
        config, steps = self.config.optimizer, self.total
        shape: dict[str, Any] = {"schedule": config.schedule, "peak_at": config.peak_at}
        milestones = [epochs * self.steps for epochs in config.milestones]
        for group in self.state.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=config.lr, milestones=milestones, decay=config.decay, **shape)
            if config.momentum_cycling and config.momentum is not None:
                group["momentum"] = cycled_momentum(step, steps, momentum=config.momentum, **shape)

    def _average(self, step: int) -> None:
        if self.state.average is not None:
            config = self.config.training
            first = (config.average_from or 0) * self.steps
            share = averaging.share_of_latest(step, ema=config.ema, first=first)
            averaging.move(self.state.average, self.state.model, share)

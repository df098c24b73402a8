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

from adv_train import accelerate, attacks, averaging, data, measures, models
from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.data.split import to_unit_range
from adv_train.data.stratified import stratified_head
from adv_train.errors import UserError
from adv_train.methods import Sizes
from adv_train.precision import computed_in
from adv_train.ranks import ALONE, Ranks, Share, Stream
from adv_train.ranks.norm import synchronised
from adv_train.schedules import cycled_momentum, learning_rate, warmed_up
from adv_train.spread import Spread
from adv_train.state import TrainingState
from adv_train.training_step import TrainingStep

_VALIDATION_BATCH = 500

ALIGNED = 256
"""Largest number of validation images for gradient alignment, which costs 4 forward passes over them per epoch."""


class Trainer:
    """Trains a model epoch by epoch, with its method, its optimiser and its data.

    Args:
        config: Configuration of the run.
        dataset: The data, on the device that trains.
        device: The device that trains.
        ranks: The ranks that train together, each with a part of every batch; all of them get the same results.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.config = config
        self.dataset = dataset
        self.device = device
        arguments: dict[str, Any] = dataset.model_arguments()
        model = models.create(config.model.name, **arguments, seed=config.training.seed, **config.model.options)
        if config.model.init is not None:
            network = {"name": config.model.name, **config.model.options}
            models.load_weights(model, Path(config.model.init), config.model.init_normalisation, network)
        self._layout = torch.channels_last if config.compute.channels_last else torch.contiguous_format
        if config.compute.channels_last:
            models.require_layout(model, device)
        model = model.to(device).to(memory_format=self._layout)
        if config.compute.sync_batchnorm:
            synchronised(model)
        self.method = config.full_method
        self.replays = self.method.replays()
        bounds = data.batch_bounds(len(dataset.train), config.training.batch_size, ranks.size)
        if config.compute.sync_batchnorm and any((stop - start) % ranks.size for start, stop in bounds):
            raise UserError(
                f"With --sync-batchnorm the size of each batch must be divisible by {ranks.size}, the number of "
                f"processes, because the gradient through the statistics is right for equal parts only, but there are "
                f"batches of {sorted({stop - start for start, stop in bounds})}. Change --batch-size or --train-limit."
            )
        self.steps = self.replays * len(bounds)
        most = Share(max(stop - start for start, stop in bounds), ranks)
        sizes = Sizes(dataset.train.images.shape, dataset.classes, len(most))
        averages = config.training.ema is not None or config.training.average_from is not None
        self.state = TrainingState(
            model,
            config.optimizer.create(model.parameters(), captured=config.compute.accelerate == "graph"),
            self.method.remember(model, sizes),
            copy.deepcopy(model).eval().requires_grad_(False) if averages else None,
            Spread(self.method.keeps(), most.whole, ranks),
        )
        chosen, self.noise = config.compute.accelerate, Stream(device)
        self.step = TrainingStep(
            self.state,
            self.method,
            config.threat,
            device,
            precision=config.compute.precision,
            clip=config.optimizer.clip,
            generator=self.noise,
            model=accelerate.compiled(model) if chosen == "compile" else None,
        )
        self.replayed = accelerate.Replayed(self.step) if chosen == "graph" else None
        self._compiling = accelerate.seconds_of_compiling() if chosen == "compile" else 0.0
        self.lr = config.optimizer.lr

    def train_epoch(
        self,
        epoch: int,
        count_step: Callable[[], None],
        measure: Callable[[Tensor, int], None] | None = None,
        *,
        discarded: int = 0,
    ) -> dict[str, Any]:
        """Train on the whole training split once.

        Args:
            epoch: Index of the epoch, from 0; together with the seed it determines all random numbers.
            count_step: Called after every step.
            measure: Called after every step with the sum of the losses of the epoch's images so far, a tensor on the
                device, and the number of images of the step.
            discarded: Number of earlier epochs of the mean of the weights that it no longer holds, see
                `adv_train.averaging.discarded`.

        Returns:
            Learning rate of the last step, mean loss, and mean share of the implicit gradient; during the warm-up of
            eps also the epoch's eps.
        """
        generator = data.epoch_generator(self.config.training.seed, epoch, self.device)
        # Layers such as dropout draw from the global generator. Each rank has another seed, so that they draw
        # different masks.
        torch.manual_seed((generator.initial_seed() + self.ranks.rank) % 2**63)
        eps = warmed_up(self.config.threat.eps, epoch, self.config.training.eps_warmup)
        step = self.step
        step.threat = replace(self.config.threat, eps=eps)
        noise = data.epoch_generator(self.config.training.seed, epoch, purpose="method")
        self.noise.manual_seed(noise.initial_seed())
        step.begin(epoch * self.steps, self.total, epoch)
        if self.replayed is not None:
            self.replayed.begin()
        take, alpha = self.replayed or step, self.config.data.mixup
        batches = data.batches(
            self.dataset.train,
            self.config.training.batch_size,
            generator=generator,
            augment=self.dataset.augment,
            ranks=self.ranks,
            mixup=data.Mixup(alpha, self.config.training.seed, epoch) if alpha else None,
            layout=self._layout,
        )
        seen: list[Tensor] = []
        replayed = (batch for batch in batches for _ in range(self.replays))
        for index, batch in enumerate(replayed):
            self._set_rates(epoch * self.steps + index, discarded)
            take(batch)
            seen.append(batch.index)
            count_step()
            if measure is not None:
                measure(step.loss, batch.part.whole)
        self.state.spread.exchange(self.state.memory, torch.cat(seen))
        mean_share = float(step.share) / self.steps
        return {
            "lr": self.lr,
            "loss": float(step.loss) / (self.replays * len(self.dataset.train)),
            # NaN (0/0) if both parts of a gradient vanish, infinite if only the direct one does; JSON has neither.
            "implicit_share": mean_share if math.isfinite(mean_share) else None,
            **({"eps": eps} if epoch < self.config.training.eps_warmup else {}),
        }

    @property
    def total(self) -> int:
        """Number of steps of the whole run."""
        return self.config.training.epochs * self.steps

    def validate(self) -> dict[str, float | None]:
        """Measure clean accuracy and accuracy under PGD on the validation split, with the same noise in every epoch.

        In a run with averaging, the model has the averaged weights.

        Returns:
            ``val_images`` and ``val_steps``, the numbers of images and of PGD steps; ``val_sa`` and ``val_ra``, clean
            and robust accuracy; ``val_fgsm``, the accuracy after one attack step; ``val_top_class``, the share of the
            most frequent predicted class; and ``val_alignment``, the gradient alignment on a fixed choice of at most
            256 images, in the ball of the full eps, or None if it is defined for no image.
        """
        model = self.state.judged.eval()
        generator = Stream(self.device)
        generator.manual_seed(0)
        survivors = torch.zeros(2, dtype=torch.int64, device=self.device)
        split = self._validation(self.config.training.validation_images)
        predicted = torch.zeros_like(split.labels)
        batches = data.ordered_batches(split, _VALIDATION_BATCH)
        for (images, labels), places in zip(batches, predicted.split(_VALIDATION_BATCH), strict=True):
            share = generator.share = Share(len(labels), self.ranks)
            x, y, answers = images[share.rows], labels[share.rows], places[share.rows]
            x = x.contiguous(memory_format=self._layout)
            if len(y) == 0:
                continue
            with computed_in(self.config.compute.precision, self.device):
                with torch.no_grad():
                    answers.copy_(model(x).argmax(1))
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
                stepped = measures.survives_one_step(model, x, y, self.config.threat) & (answers == y)
            survivors += torch.stack([survived.sum(), stepped.sum()])
        samples, predicted = len(split), self.ranks.add(predicted)
        robust, one_step = self.ranks.add(survivors).tolist()
        return {
            "val_images": samples,
            "val_steps": self.config.training.validation_steps,
            "val_sa": int((predicted == split.labels).sum()) / samples,
            "val_ra": robust / samples,
            "val_fgsm": one_step / samples,
            "val_top_class": int(predicted.bincount().max()) / samples,
            # Measured last and with its own generator, so that it does not change the figures above.
            "val_alignment": self._alignment(model),
        }

    def _validation(self, most: int | None) -> data.Split:
        """Return the validation split, or its first `most` images with all classes in proportion if it is larger."""
        split = self.dataset.validation
        if most is None or len(split) <= most:
            return split
        return split.subset(stratified_head(split.labels.cpu(), most).to(self.device))

    def _alignment(self, model: nn.Module) -> float | None:
        split = self._validation(min(ALIGNED, self.config.training.validation_images or ALIGNED))
        with computed_in(self.config.compute.precision, self.device):
            images = to_unit_range(split.images).contiguous(memory_format=self._layout)
            generator = torch.Generator().manual_seed(0)
            found = measures.alignment(model, images, split.labels, self.config.threat, generator)
        return found if math.isfinite(found) else None

    def prepared(self) -> float:
        """Return the seconds that this process has spent so far on capturing or compiling steps."""
        if self.config.compute.accelerate == "compile":
            return accelerate.seconds_of_compiling() - self._compiling
        return 0.0 if self.replayed is None else self.replayed.seconds

    def _set_rates(self, step: int, discarded: int) -> None:
        config, steps, training = self.config.optimizer, self.total, self.config.training
        device = None if self.replayed is None else self.device
        shape: dict[str, Any] = {"schedule": config.schedule, "peak_at": config.peak_at}
        milestones = [epochs * self.steps for epochs in config.milestones]
        self.lr = learning_rate(step, steps, peak=config.lr, milestones=milestones, decay=config.decay, **shape)
        for group in self.state.optimizer.param_groups:
            group["lr"] = accelerate.held(group["lr"], self.lr, device)
            if config.momentum_cycling and config.momentum is not None:
                momentum = cycled_momentum(step, steps, momentum=config.momentum, **shape)
                group["momentum"] = accelerate.held(group["momentum"], momentum, device)
        first = ((training.average_from or 0) + discarded) * self.steps
        share = averaging.share_of_latest(step, ema=training.ema, first=first)
        self.step.latest = accelerate.held(self.step.latest, share, device)

"""One epoch: steps of a method with SGD, then clean and robust accuracy on the validation split."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adv_train import attacks, data, models
from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.methods import Moment
from adv_train.precision import computed_in
from adv_train.schedules import cycled_momentum, learning_rate
from adv_train.state import TrainingState

_VALIDATION_BATCH = 500


class Trainer:
    """A model, its optimiser and its data, moved one epoch at a time.

    Args:
        config: What to train.
        dataset: On the device that trains.
        device: That device.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, device: torch.device) -> None:
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
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.optimizer.lr,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
        )
        self.replays = config.method.replays()
        self.steps = self.replays * len(data.batch_bounds(len(dataset.train), config.training.batch_size))
        self.state = TrainingState(model, optimizer, config.method.remember(model, len(dataset.train)))

    def train_epoch(self, epoch: int, count_step: Callable[[], None]) -> dict[str, Any]:
        """Go once through the training split.

        Args:
            epoch: Number of the epoch, from 0; with the seed it fixes all randomness.
            count_step: Called after every step.

        Returns:
            Learning rate of the last step, mean loss, and mean share of the implicit gradient.
        """
        generator = data.epoch_generator(self.config.training.seed, epoch, self.device)
        torch.manual_seed(generator.initial_seed())  # for layers such as dropout, which know no other generator
        parameters: dict[str, Tensor] = {
            name: value for name, value in self.state.model.named_parameters() if value.requires_grad
        }
        self.state.model.train()
        # Sums stay on the device: reading one number a step would make the host wait for the device every time.
        loss = torch.zeros((), device=self.device)
        share = torch.zeros((), device=self.device)
        batches = data.batches(
            self.dataset.train, self.config.training.batch_size, generator=generator, augment=self.dataset.augment
        )
        moment = Moment(*(torch.tensor(n, device=self.device) for n in (epoch * self.steps, self.total, epoch)))
        replayed = (batch for batch in batches for _ in range(self.replays))
        for index, batch in enumerate(replayed):
            self._set_rates(epoch * self.steps + index)
            with computed_in(self.config.compute.precision, self.device):
                step = self.config.method(
                    self.state.model,
                    parameters,
                    batch,
                    self.config.threat,
                    moment=moment,
                    state=self.state.memory,
                    generator=generator,
                )
            for name, parameter in parameters.items():
                parameter.grad = step.grads[name]
            self.state.optimizer.step()
            self.state.memory = step.state
            moment.step.add_(1)
            loss += step.loss.detach() * len(batch.y)
            share += step.implicit_share.detach()
            count_step()
        mean_share = float(share) / self.steps
        return {
            "lr": self.state.optimizer.param_groups[0]["lr"],
            "loss": float(loss) / (self.replays * len(self.dataset.train)),
            # 0/0 where the direct part vanishes: JSON has no NaN.
            "implicit_share": mean_share if math.isfinite(mean_share) else None,
        }

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.config.training.epochs * self.steps

    def validate(self) -> dict[str, float]:
        """Measure clean accuracy and accuracy under PGD on the validation split, from the same noise in every epoch.

        Returns:
            ``val_sa`` and ``val_ra``, and ``val_top_class``: the share of the images that get the most frequent answer.
        """
        self.state.model.eval()
        generator = torch.Generator(self.device).manual_seed(0)
        robust = torch.zeros((), dtype=torch.int64, device=self.device)
        answers: list[Tensor] = []
        for x, y in data.ordered_batches(self.dataset.validation, _VALIDATION_BATCH):
            with computed_in(self.config.compute.precision, self.device):
                with torch.no_grad():
                    answers.append(self.state.model(x).argmax(1))
                survived, _ = attacks.pgd(
                    self.state.model,
                    x,
                    y,
                    eps=self.config.threat.eps,
                    steps=self.config.training.validation_steps,
                    restarts=1,
                    generator=generator,
                )
            robust += survived.sum()
        samples, predicted = len(self.dataset.validation), torch.cat(answers)
        clean = (predicted == self.dataset.validation.labels).sum()
        return {
            "val_sa": int(clean) / samples,
            "val_ra": int(robust) / samples,
            "val_top_class": int(predicted.bincount().max()) / samples,
        }

    def _set_rates(self, step: int) -> None:
        config, steps = self.config.optimizer, self.total
        for group in self.state.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=config.lr, schedule=config.schedule)
            if config.momentum_cycling:
                group["momentum"] = cycled_momentum(step, steps, momentum=config.momentum)

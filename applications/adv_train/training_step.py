"""One step of training as a function of a batch: tensors are updated in place, and the host reads none of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from adv_train import averaging
from adv_train.data import Batch
from adv_train.methods import Method, Moment
from adv_train.methods.weights import trainable
from adv_train.precision import computed_in
from adv_train.ranks import Stream
from adv_train.spread import met
from adv_train.state import TrainingState
from adv_train.threat import Threat


class TrainingStep:
    """Computes a method's gradient, clips it, steps the optimiser, and updates the average and the sums of the epoch.

    Args:
        state: The state that the step updates.
        method: Computes the gradient.
        threat: The threat of the attack.
        device: The device that trains.
        precision: One of `adv_train.precision.PRECISIONS`.
        clip: Largest norm of the gradient; None does not clip it.
        generator: Source of the method's random numbers, on the device.
        model: Model that the method calls instead of the state's model, with the same weights.

    Attributes:
        threat: The threat of the attack; it may change between steps.
        moment: Position of the next step in the run; each step advances it.
        loss: Sum of the losses of the images in the epoch so far, shape `()`.
        share: Sum of the shares of the implicit gradient in the epoch so far, shape `()`.
        latest: Weight of the latest weights in their average, see `adv_train.averaging.move`.
    """

    def __init__(
        self,
        state: TrainingState,
        method: Method,
        threat: Threat,
        device: torch.device,
        *,
        precision: str = "fp32",
        clip: float | None = None,
        generator: torch.Generator | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.state, self.threat, self.device, self.generator = state, threat, device, generator
        self.moment = Moment(*(torch.zeros((), dtype=torch.int64, device=device) for _ in Moment._fields))
        # The sums stay on the device: reading a number in each step would make the host wait for the device each time.
        self.loss, self.share = torch.zeros((), device=device), torch.zeros((), device=device)
        self.latest: float | Tensor = 1.0
        self._method, self._precision, self._clip = method, precision, clip
        self.model = state.model if model is None else model
        self._params = trainable(state.model)

    def begin(self, *moment: int) -> None:
        """Start an epoch: set the moment of its first step, set the sums to zero, and put the model in train mode."""
        self.state.model.train()
        self.model.train()
        for place, value in zip(self.moment, moment, strict=True):
            place.fill_(value)
        self.loss.zero_()
        self.share.zero_()

    def __call__(self, batch: Batch) -> None:
        """Train on a batch; with several ranks, each trains on its part of the batch."""
        share = batch.part
        if isinstance(self.generator, Stream):
            self.generator.share = share
        with computed_in(self._precision, self.device):
            step = self._method(
                self.model,
                self._params,
                batch,
                self.threat,
                moment=self.moment,
                state=self.state.memory,
                generator=self.generator,
            )
        step = met(step, share, self.state.model)
        for name, parameter in self._params.items():
            parameter.grad = step.grads[name]
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._params.values(), self._clip)
        self.state.optimizer.step()
        if self.state.average is not None:
            averaging.move(self.state.average, self.state.model, self.latest)
        for name, value in step.state.items():
            if value is not self.state.memory[name]:
                self.state.memory[name].copy_(value.detach())
        self.moment.step.add_(1)
        self.loss += step.loss.detach() * share.whole
        self.share += step.implicit_share.detach()

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that the step updates, and the rates that it reads if they are tensors."""
        models = [model for model in (self.state.model, self.state.average) if model is not None]
        yield from (value for model in models for value in model.state_dict().values())
        optimizer = self.state.optimizer
        kept = [value for state in optimizer.state.values() for value in state.values()]
        rates = [value for group in optimizer.param_groups for key, value in group.items() if key != "params"]
        others = [*kept, *rates, *self.state.memory.values(), *self.moment, self.loss, self.share, self.latest]
        yield from (value for value in others if isinstance(value, Tensor))

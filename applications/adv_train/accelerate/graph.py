"""A training step on buffers with fixed addresses: on a CUDA device one graph, which the host launches in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adv_train.data import Batch, Mixture
from adv_train.data.motion import Motion
from adv_train.errors import UserError
from adv_train.training_step import TrainingStep

_EAGER = 2
"""Eager steps of each batch shape before its capture: libraries load their kernels, the optimiser makes its state."""


def captured(
    step: Callable[[], object], stream: torch.cuda.Stream, generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """Capture a step as a graph on the current CUDA device. Nothing is computed before the first replay.

    A replay draws the random numbers that the step itself would draw.

    Args:
        step: The step, which has run on the stream before.
        stream: The stream on which to capture it.
        generator: The generator that the step draws from, besides the default one.

    Raises:
        UserError: If the step does something that a CUDA graph does not support.
    """
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, stream=stream):
            step()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"The training step cannot be captured ({reason}): use --accelerate off.") from error
    return graph


@dataclass
class _Slot:
    """The buffers of one shape of a batch.

    Attributes:
        batch: The buffers.
        taken: Number of steps taken eagerly.
        graph: The captured step on these buffers; None until it is captured.
        seal: The threat and the addresses with which the graph was captured.
    """

    batch: Batch
    taken: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    seal: Hashable = None


class Replayed:
    """Copies each batch to fixed addresses and takes a training step there; on a CUDA device it replays a graph.

    Each shape of a batch has buffers and a graph of its own, so the last, smaller batch of an epoch is replayed too. On
    other devices the same step runs eagerly on the same buffers.

    Args:
        step: The training step of a run.
        captures: Whether to capture; if not, the step runs eagerly on the buffers on every device.

    Attributes:
        seconds: Time spent on capturing so far.
    """

    def __init__(self, step: TrainingStep, *, captures: bool = True) -> None:
        self.seconds, self.captures = 0.0, captures
        self._step = step
        self._slots: dict[Hashable, _Slot] = {}
        self._stream = torch.cuda.Stream(step.device) if captures and step.device.type == "cuda" else None

    def begin(self) -> None:
        """Drop graphs captured for another threat or other addresses, such as another eps or before a rollback."""
        seal = self._seal()
        for slot in self._slots.values():
            if slot.seal != seal:
                slot.graph = None

    def __call__(self, batch: Batch) -> None:
        """Train on a batch."""
        key = tuple((name, value.shape, value.dtype) for name, value in _tensors(batch).items())
        slot = self._slots.get(key) or self._slots.setdefault(key, _Slot(_copied(batch)))
        torch._foreach_copy_(list(_tensors(slot.batch).values()), list(_tensors(batch).values()))
        if self._stream is None:
            self._step(slot.batch)
        else:
            self._on_stream(slot, self._stream)

    def _on_stream(self, slot: _Slot, stream: torch.cuda.Stream) -> None:
        if slot.graph is None and slot.taken >= _EAGER:
            torch.cuda.synchronize(self._step.device)
            begun = time.perf_counter()
            slot.graph = captured(lambda: self._step(slot.batch), stream, self._step.generator)
            slot.seal = self._seal()
            torch.cuda.synchronize(self._step.device)
            self.seconds += time.perf_counter() - begun
        if slot.graph is not None:
            slot.graph.replay()
            return
        # Run on the stream of the later capture, so that memory and library state of the first steps belong to it.
        stream.wait_stream(torch.cuda.current_stream(self._step.device))
        with torch.cuda.stream(stream):
            self._step(slot.batch)
        torch.cuda.current_stream(self._step.device).wait_stream(stream)
        slot.taken += 1

    def _seal(self) -> Hashable:
        return self._step.threat, tuple(value.data_ptr() for value in self._step.tensors())


def _tensors(batch: Batch) -> dict[str, Tensor]:
    mixture = {} if batch.mixture is None else {f"mixed_{name}": value for name, value in vars(batch.mixture).items()}
    named: dict[str, Any] = {"x": batch.x, "y": batch.y, "index": batch.index, **vars(batch.motion), **mixture}
    return {name: value for name, value in named.items() if value is not None}


def _copied(batch: Batch) -> Batch:
    copies: dict[str, Any] = {name: value.clone() for name, value in _tensors(batch).items()}
    motion = Motion(**{name: copies.pop(name, None) for name in vars(batch.motion)})
    mixed = {} if batch.mixture is None else {name: copies.pop(f"mixed_{name}") for name in vars(batch.mixture)}
    return Batch(**copies, motion=motion, mixture=Mixture(**mixed) if mixed else None)

"""A training step from buffers with fixed addresses: on a CUDA device one graph, which the host launches at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adv_train.data import Batch
from adv_train.data.motion import Motion
from adv_train.errors import UserError
from adv_train.training_step import TrainingStep

_EAGER = 2
"""Steps of each shape before its graph: libraries load what they run, and the optimiser makes its state."""


def captured(
    step: Callable[[], object], stream: torch.cuda.Stream, generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """Return a step as a graph on the current CUDA device. Nothing is computed before its first replay.

    A replay draws the numbers that the step itself would draw.

    Args:
        step: Was taken on the stream before.
        stream: On which it is captured.
        generator: That it draws from, besides the default one.

    Raises:
        UserError: When the step does something that a graph cannot hold.
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
        taken: Steps taken eagerly.
        graph: The step on them, once it is captured.
        seal: What the graph was captured with.
    """

    batch: Batch
    taken: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    seal: Hashable = None


class Replayed:
    """Takes a training step on copies of batches at fixed addresses; on a CUDA device it captures and replays it.

    Each shape of a batch has buffers and a graph of its own, so the last, smaller batch of an epoch is replayed too.
    Elsewhere the same step runs eagerly from the same buffers.

    Args:
        step: Of a run.
        captures: Whether to capture; else the step runs eagerly from the buffers on every device.

    Attributes:
        seconds: Spent on capturing so far.
    """

    def __init__(self, step: TrainingStep, *, captures: bool = True) -> None:
        self.seconds, self.captures = 0.0, captures
        self._step = step
        self._slots: dict[Hashable, _Slot] = {}
        self._stream = torch.cuda.Stream(step.device) if captures and step.device.type == "cuda" else None

    def begin(self) -> None:
        """Drop the graphs of a step that has changed since: another eps, or other addresses after a rollback."""
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
        # As capture does: what the first steps allocate and set up belongs to the stream that is captured.
        stream.wait_stream(torch.cuda.current_stream(self._step.device))
        with torch.cuda.stream(stream):
            self._step(slot.batch)
        torch.cuda.current_stream(self._step.device).wait_stream(stream)
        slot.taken += 1

    def _seal(self) -> Hashable:
        return self._step.threat, tuple(value.data_ptr() for value in self._step.tensors())


def _tensors(batch: Batch) -> dict[str, Tensor]:
    named: dict[str, Any] = {"x": batch.x, "y": batch.y, "index": batch.index, **vars(batch.motion)}
    return {name: value for name, value in named.items() if value is not None}


def _copied(batch: Batch) -> Batch:
    copies = {name: value.clone() for name, value in _tensors(batch).items()}
    motion = Motion(**{name: copies.pop(name, None) for name in vars(batch.motion)})
    return Batch(**copies, motion=motion)

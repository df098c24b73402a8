"""Time, memory and work of a call."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.registry import Setting

# Without this, torch's profiler, which counts memory here, writes to the terminal.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

#: A measurement lasts at least this many seconds; short calls are repeated within it.
_LEAST = 0.02
#: A race of short calls continues for this many seconds for each requested round, or for this many times the rounds:
#: on a shared machine the median of 15 ratios of a call to itself is off by 6 %, that of 120 ratios by 2 %.
_SPAN, _TIMES = 4.0, 8


@dataclass(frozen=True)
class Timed:
    """The timings of one contestant in a race.

    Attributes:
        seconds: the time of one call, in each round.
        wall: the wall-clock time of one call, in each round; on a GPU the same as `seconds`.
        floor: the floor's times in these rounds and possibly more; None without a floor.
    """

    seconds: Sequence[float]
    wall: Sequence[float]
    floor: Sequence[float] | None

    @property
    def milliseconds(self) -> float:
        """Median over the rounds."""
        return 1e3 * statistics.median(self.seconds)

    @property
    def wall_milliseconds(self) -> float:
        """Median wall-clock time over the rounds, in which other processes may have had the processor."""
        return 1e3 * statistics.median(self.wall)

    @property
    def over_floor(self) -> float | None:
        """Median over the rounds of the ratio to the floor of the same round; None without a floor."""
        return None if self.floor is None else ratio(self.seconds, self.floor)[0]


def ratio(times: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Return the median over the rounds of the ratios of two contestants, and its uncertainty.

    The uncertainty is half the width of the 95 % confidence interval of the median, which lies between two order
    statistics; it is infinite for fewer than six rounds (David and Nagaraja, Order Statistics, 2003, section 7.1).
    """
    ratios = sorted(t / b for t, b in zip(times, base, strict=False))  # some contestants have fewer rounds
    beside = math.floor((len(ratios) - 1.96 * math.sqrt(len(ratios))) / 2)
    off = (ratios[-1 - beside] - ratios[beside]) / 2 if len(ratios) > 5 else math.inf
    return statistics.median(ratios), off


def race(
    contestants: Mapping[str, Callable[[], object]], setting: Setting, floor: str | None = None
) -> dict[str, Timed]:
    """Time the contestants in interleaved rounds, each round in another order.

    If the calls are short, further rounds time only the contestants that goals compare: the floor, hand-written code
    and blo.

    On a CPU the times are processor times, which count all threads of this process and no other process; with one
    thread they equal wall-clock times on an idle machine. On a GPU they are wall-clock times, and the device is
    synchronised before each reading.
    """
    repeats = {name: _repeats(call, setting) for name, call in contestants.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    names = list(contestants)
    started = time.perf_counter()
    for number in range(setting.rounds * (1 if setting.quick else _TIMES)):
        if number == setting.rounds:
            names, started = [name for name in names if _compared(name, floor)], time.perf_counter()
        elif number > setting.rounds and time.perf_counter() - started > _SPAN * setting.rounds:
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            gc.collect()  # so that no contestant's time includes collecting the garbage of another
            found[name].append(_seconds(contestants[name], repeats[name], setting.device))
    base = [seconds for seconds, _ in found[floor]] if floor is not None else None
    return {
        name: Timed([pair[0] for pair in times], [pair[1] for pair in times], base) for name, times in found.items()
    }


def _compared(name: str, floor: str | None) -> bool:
    return name == floor or name.startswith(("blo", "by hand"))


def _seconds(call: Callable[[], object], repeats: int, device: torch.device) -> tuple[float, float]:
    """Return the time of one call, and its wall-clock time."""
    clock = _clock(device)
    started, wall = clock(), time.perf_counter()
    for _ in range(repeats):
        call()
    seconds = clock() - started  # on a GPU the clock waits for the device, so it is read first
    return seconds / repeats, (time.perf_counter() - wall) / repeats


def _repeats(call: Callable[[], object], setting: Setting) -> int:
    call()  # warms up
    once, _ = _seconds(call, 1, setting.device)
    return 1 if setting.quick else max(1, math.ceil(_LEAST / max(once, 1e-6)))


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.process_time

    def wall() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return wall


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """Return the peak of the memory that torch holds during a call, minus what it held before, in MiB.

    Only torch's allocations count: the result is zero for a library that has its own tensors.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak / 2**20


class Passes(TorchDispatchMode):
    """Counts the matrix products with given tensors, that is, how often their data are read.

    It counts the work that a library really does, whatever its options say.
    """

    def __init__(self, data: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._watched = {tensor.untyped_storage().data_ptr() for tensor in data}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.overloadpacket in _PRODUCTS and any(self._watches(argument) for argument in args):
            self.count += 1
        return function(*args, **(kwargs or {}))

    def _watches(self, argument: Any) -> bool:
        return isinstance(argument, Tensor) and argument.untyped_storage().data_ptr() in self._watched


_PRODUCTS = {torch.ops.aten.mv, torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmv, torch.ops.aten.addmm}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return `|found - exact| / |exact|`, in double precision on the CPU; NaN if an entry is NaN."""
    found, exact = found.detach().to("cpu", torch.float64), exact.detach().to("cpu", torch.float64)
    return float(torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact))


def largest_relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the largest relative difference of paired tensors; for equal tensors it is 0, even if both are zero."""
    norm = torch.linalg.vector_norm
    pairs = zip(found, exact, strict=True)
    return max(0.0 if torch.equal(a, b) else float(norm(a - b) / norm(b).clamp(min=1e-30)) for a, b in pairs)

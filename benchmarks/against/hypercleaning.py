"""Data hyper-cleaning on digits, unrolled and implicit, over hand-written floors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import peers
from benchmarks.measure import peak_mib, race, ratio, relative_error
from benchmarks.peers import Prepared, Unsupported
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark
from benchmarks.unrolled import cleaning, dense, implicit, unroll

_STEPS, _PRODUCTS = 100, 20
_NOTES = {
    "unrolled": "The error is the difference to the floor.",
    "implicit": "The error is to a dense solve at the same point.",
}


@benchmark("cleaning", "data hyper-cleaning on digits: 100 gradient steps, unrolled or with 20 iterations of CG")
def run(setting: Setting) -> Outcome:
    """Race both kinds of hypergradient."""
    problem = cleaning(setting)
    steps, products = (5, 3) if setting.quick else (_STEPS, _PRODUCTS)
    kinds: dict[str, tuple[Callable[[], Any], tuple[int, ...], float]] = {
        "unrolled": (lambda: unroll(problem, steps), (steps,), 1.02),
        "implicit": (lambda: implicit(problem, steps, products), (steps, products), 1.05),
    }
    tables, goals = [], []
    for kind, (floor, numbers, limit) in kinds.items():
        setting.log(f"  {kind}")
        contestants, reasons = {"floor": Prepared(floor, lambda found: found)}, {}
        for peer in peers.load():
            prepare: Callable[..., Any] | None = getattr(peer.adapter, f"prepare_{kind}", None)
            try:
                if prepare is None:
                    raise Unsupported(f"absent: {peer.absent}" if peer.adapter is None else "no adapter")
                contestants[peer.name] = prepare(problem, *numbers)
            except Unsupported as reason:
                reasons[peer.name] = str(reason)
        answer = floor() if kind == "unrolled" else dense(problem, steps)
        times = race({name: each.run for name, each in contestants.items()}, setting, floor="floor")
        peaks = {name: peak_mib(each.run, setting.device) for name, each in contestants.items()}
        rows: list[list[Cell]] = [
            [
                name,
                relative_error(each.read(each.run()), answer),
                times[name].milliseconds,
                times[name].wall_milliseconds,
                times[name].over_floor,
                peaks[name],
            ]
            for name, each in contestants.items()
        ]
        rows += [[name, reason, *[None] * 4] for name, reason in reasons.items()]
        tables.append(
            Table(kind, ["library", "relative error", "ms", "wall ms", "over floor", "peak MiB"], rows, [_NOTES[kind]])
        )
        over, off = ratio(times["blo"].seconds, times["floor"].seconds)
        goals.append(Goal(f"blo over the floor, {kind}", over, limit, off=off))
        if kind == "unrolled":
            memory = peaks["blo"] / peaks["floor"]
            goals.append(Goal("blo's peak memory over the floor's, unrolled", memory, 1.05))
    return Outcome(tables, goals)

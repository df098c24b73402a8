"""Batches of box problems: CG on the free coordinates of all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import floors, peers
from benchmarks.boxed import boxed
from benchmarks.measure import peak_mib, race, ratio, relative_error
from benchmarks.peers import Prepared, Unsupported, _blo
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark

_PRODUCTS = 30


@benchmark("boxes", "hypergradient of 128 box problems of 64 unknowns, 30 iterations of masked CG")
def run(setting: Setting) -> Outcome:
    """Race with a fixed number of iterations, then run CG until it converges."""
    problem = boxed(setting, 4, 8) if setting.quick else boxed(setting)
    floor = Prepared(lambda: floors.boxed_hypergradient(problem, _PRODUCTS), lambda found: found)
    contestants, reasons = {"floor": floor}, {}
    for peer in peers.load():
        prepare: Callable[..., Any] | None = getattr(peer.adapter, "prepare_boxed", None)
        try:
            if prepare is None:
                raise Unsupported(f"absent: {peer.absent}" if peer.adapter is None else "no constraints")
            contestants[peer.name] = prepare(problem, _PRODUCTS)
        except Unsupported as reason:
            reasons[peer.name] = str(reason)

    calls: dict[str, Callable[[], object]] = {name: each.run for name, each in contestants.items()}
    times = race(calls, setting, floor="floor")
    rows: list[list[Cell]] = []
    for name, each in contestants.items():
        error = relative_error(each.read(each.run()), problem.exact)
        memory = None if name == "jaxopt" else peak_mib(each.run, setting.device)
        time = times[name]
        rows.append([name, error, time.milliseconds, time.wall_milliseconds, time.over_floor, memory])
    rows += [[name, reason, *[None] * 4] for name, reason in reasons.items()]

    until_done = _blo.prepare_boxed(problem, 200, tol=1e-14)
    exact = relative_error(until_done.read(until_done.run()), problem.exact)
    over, off = ratio(times["blo"].seconds, times["floor"].seconds)
    free = float((problem.z.abs() < 1).double().mean())
    notes = [f"{free:.0%} of the coordinates are free. blo until CG converges: relative error {exact:.2e}."]
    table = Table("128 x 64", ["library", "relative error", "ms", "wall ms", "over floor", "peak MiB"], rows, notes)
    goals = [Goal("blo over the floor", over, 1.1, off=off), Goal("blo until done: relative error", exact, 1e-12)]
    return Outcome([table], goals)

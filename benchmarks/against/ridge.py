"""One hypergradient of ridge regression: error, work, time and memory of every library over a hand-written floor."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import floors, peers
from benchmarks.measure import Passes, peak_mib, race, ratio, relative_error
from benchmarks.peers import Peer, Prepared, Unsupported
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark
from benchmarks.smooth import Smooth, ridge

#: For each number of products, the largest allowed ratio of blo's time to the floor's.
_GOALS = {10: 1.2, 50: 1.1, 200: 1.1}


@benchmark("ridge", "hypergradient of ridge regression, 2,000 x 500, by conjugate gradients")
def run(setting: Setting) -> Outcome:
    """Compare all libraries at each number of products."""
    problem = ridge(setting, 60, 20) if setting.quick else ridge(setting)
    found = peers.load()
    tables, goals = [], []
    for products, limit in _GOALS.items():
        setting.log(f"  {products} products")
        table, (over, off) = _compare(problem, products, found, setting)
        tables.append(table)
        goals.append(Goal(f"blo over the floor at {products} products", over, limit, off=off))
    return Outcome(tables, goals)


def _compare(problem: Smooth, products: int, found: list[Peer], setting: Setting) -> tuple[Table, tuple[float, float]]:
    """Return the table for one number of products, and the ratio of blo's time to the floor's with its uncertainty."""
    floor = Prepared(lambda: floors.hypergradient(problem, products), lambda gradient: gradient)
    contestants: dict[str, Prepared] = {"floor": floor}
    methods, absent = {"floor": "plain torch, by hand"}, {}
    for peer in found:
        try:
            if peer.adapter is None:
                raise Unsupported(peer.absent)
            contestants[peer.name] = peer.adapter.prepare(problem, products)
            methods[peer.name] = peer.adapter.METHOD
        except Unsupported as reason:
            absent[peer.name] = str(reason)

    calls: dict[str, Callable[[], object]] = {name: each.run for name, each in contestants.items()}
    times = race(calls, setting, floor="floor")
    rows: list[list[Cell]] = []
    for name, each in contestants.items():
        error = relative_error(each.read(each.run()), problem.exact)
        with Passes(problem.data[:1]) as passes:
            each.run()
        # Torch does not see the operations of another framework.
        seen = passes.count > 0
        rows.append(
            [
                name,
                methods[name],
                error,
                passes.count if seen else None,
                times[name].milliseconds,
                times[name].wall_milliseconds,
                times[name].over_floor,
                peak_mib(each.run, setting.device) if seen else None,
            ]
        )
    rows += [[name, f"absent: {reason}", *[None] * 6] for name, reason in absent.items()]
    columns = ["library", "method", "relative error", "passes over the data", "ms", "wall ms", "over floor", "peak MiB"]
    return Table(f"{products} products", columns, rows), ratio(times["blo"].seconds, times["floor"].seconds)

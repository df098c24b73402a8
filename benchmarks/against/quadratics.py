"""Error of the hypergradient against the number of Hessian-vector products, on quadratics of growing condition."""

from __future__ import annotations

from pathlib import Path

from benchmarks import floors, peers
from benchmarks.measure import relative_error
from benchmarks.peers import Unsupported
from benchmarks.registry import Cell, Outcome, Setting, Table, benchmark
from benchmarks.smooth import Smooth, quadratic

_PRODUCTS = (5, 10, 20, 50, 100, 200)
_CONDITIONS = (1e1, 1e2, 1e3, 1e4, 1e5)


@benchmark("quadratics", "error against products on quadratics with condition 1e1 to 1e5, 200 unknowns")
def run(setting: Setting) -> Outcome:
    """Compare all libraries on each quadratic."""
    tables = []
    curves: dict[str, dict[str, list[float]]] = {}
    for condition in _CONDITIONS:
        setting.log(f"  condition {condition:.0e}")
        problem = quadratic(setting, condition, 20 if setting.quick else 200)
        curves[f"{condition:.0e}"] = errors = _errors(problem)
        rows: list[list[Cell]] = [[name, *values] for name, values in errors.items()]
        rows += [
            [peer.name, f"absent: {peer.absent}", *[None] * (len(_PRODUCTS) - 1)]
            for peer in peers.load()
            if peer.adapter is None
        ]
        tables.append(Table(f"condition {condition:.0e}", ["library", *map(str, _PRODUCTS)], rows))
    plotted = _plot(curves, Path("runs") / "bench" / "quadratics.png") if not setting.quick else None
    return Outcome(tables, extra={"products": list(_PRODUCTS), "errors": curves, "plot": plotted})


def _errors(problem: Smooth) -> dict[str, list[float]]:
    errors = {"floor": [relative_error(floors.hypergradient(problem, k), problem.exact) for k in _PRODUCTS]}
    for peer in peers.load():
        if peer.adapter is None:
            continue
        try:
            prepared = [peer.adapter.prepare(problem, k) for k in _PRODUCTS]
        except Unsupported:
            continue
        errors[peer.name] = [relative_error(each.read(each.run()), problem.exact) for each in prepared]
    return errors


def _plot(curves: dict[str, dict[str, list[float]]], path: Path) -> str | None:
    """Plot the error against the products; return the path, or None without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.5), sharey=True, layout="constrained")
    for axis, (condition, errors) in zip(axes, curves.items(), strict=True):
        for name, values in errors.items():
            axis.loglog(_PRODUCTS, values, label=name, marker=".")
        axis.set(title=f"condition {condition}", xlabel="products")
    axes[0].set(ylabel="relative error of the hypergradient", ylim=(1e-16, 1e3))
    axes[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return str(path)

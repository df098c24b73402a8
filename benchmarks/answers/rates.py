"""Measured and published rates of the stochastic algorithms, by exact hypergradients.

Every row runs an algorithm of `blo.stochastic` and fits a straight line to what the column "measured on" names. A
published rate is an upper bound for the worst problem of its class: a steeper slope agrees with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import blo
from benchmarks.answers._finite_sum import FiniteSum
from benchmarks.answers._logistic import logistic
from benchmarks.answers._simulated import simulated
from benchmarks.answers._trajectory import direction, execute, last_tenfold, line, trajectory
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark
from blo.stochastic import Algorithm, Power, State

#: Margin of a fitted exponent above the published one, for the remaining effects of randomness and of the start.
SLACK = 0.1
#: Ratio to the start below which a run counts as converged to the rounding error.
ROUNDING = 1e-18
COLUMNS = ("algorithm", "step sizes", "measured on", "published", "measured", "first", "last")


@dataclass(frozen=True)
class Scale:
    """The sizes of a run: steps on minibatches, steps on full batches, replicas."""

    noisy: int
    exact: int
    replicas: int


@dataclass(frozen=True)
class Steps:
    """The factors of a problem's step sizes.

    Attributes:
        lower: factor for z and q on minibatches.
        upper: factor for theta on minibatches.
        exact_lower: factor for z and q on full batches.
        exact_upper: factor for theta on full batches.
        delay: delay of the decreasing and increasing schedules.
        unit: unit of theta for BOME, which has one step size for theta and z.
    """

    lower: float
    upper: float
    exact_lower: float
    exact_upper: float
    delay: float
    unit: float

    def power(self, constant: float, exponent: float) -> Power:
        """Return the schedule with one of the constants and an exponent."""
        return Power(constant, exponent, self.delay)


@dataclass(frozen=True)
class Row:
    """A row of the table, and its goal."""

    cells: Sequence[Any]
    goal: Goal


@benchmark("rates-simulated", "Stochastic algorithms at their published rates: benchopt's simulated quadratics")
def rates_simulated(setting: Setting) -> Outcome:
    problem = simulated(setting.seed, size=10, examples=256, batch=16) if setting.quick else simulated(setting.seed)
    return _outcome(problem, Steps(0.6, 1.0, 0.6, 0.5, 1.0, 1.0), setting)


@benchmark("rates-logistic", "Stochastic algorithms at their published rates: logistic regression, breast cancer")
def rates_logistic(setting: Setting) -> Outcome:
    return _outcome(logistic(setting.seed), Steps(0.15, 1.0, 0.5, 5.0, 100.0, 10.0), setting)


def _outcome(problem: FiniteSum, steps: Steps, setting: Setting) -> Outcome:
    scale = Scale(300, 30, 2) if setting.quick else Scale(20_000, 1_600, 2)
    rows = []
    for measure in (_noisy, _growing_penalty, _constant, _variance, _neumann, _barrier):
        setting.log(f"  {measure.__name__.strip('_')}")
        rows += measure(problem, steps, scale)
    low, high = problem.curvatures
    notes = (
        "E|grad F|^2: squared norm of the exact hypergradient at theta, in double precision on the CPU, averaged over "
        f"{scale.replicas} independent replicas and up to 50 steps of each of twelve bins of the last tenfold of "
        "steps; the figure is the slope of its logarithm in that of the step.",
        f"k stands for 1 + step / {steps.delay:g}. "
        f"Curvature of the lower objective between {low:.3g} and {high:.3g} at the start.",
    )
    return Outcome([Table(problem.name, COLUMNS, [row.cells for row in rows], notes)], [row.goal for row in rows])


def _noisy(problem: FiniteSum, steps: Steps, scale: Scale) -> list[Row]:
    """Step sizes that fall like one over the square root."""
    lower, upper, mixing = (steps.power(c, -0.5) for c in (steps.lower, steps.upper, 1.0))
    slow = steps.power(steps.upper / 2, -5 / 7)
    algorithms: list[tuple[Algorithm, str, str, float]] = [
        (blo.SOBA(lower_step=lower, upper_step=upper), "k^-1/2", "-1/2 (log)", -0.5),
        (blo.MASOBA(lower_step=lower, upper_step=upper, mixing=mixing), "k^-1/2", "-1/2", -0.5),
        (
            blo.AmIGO(lower_step=lower, upper_step=upper, inner_steps=1, adjoint_steps=1),
            "k^-1/2",
            "-1/2 (as SGD)",
            -0.5,
        ),
        (
            blo.F2SA(lower_step=steps.power(steps.lower, -4 / 7), upper_step=slow, multiplier=steps.power(1.0, 1 / 7)),
            "k^-4/7, k^-5/7, multiplier k^1/7",
            "-2/7 (log)",
            -2 / 7,
        ),
    ]
    rows = []
    for algorithm, schedule, published, exponent in algorithms:
        at, values = trajectory(problem, algorithm, scale.noisy, scale.replicas)
        found = last_tenfold(at, values)
        rows.append(
            _slope(algorithm, schedule, f"E|grad F|^2, minibatches, {scale.noisy} steps", published, exponent, found)
        )
    return rows


def _growing_penalty(problem: FiniteSum, steps: Steps, scale: Scale) -> list[Row]:
    """F2SA on full batches: the bias falls as the multiplier grows."""
    algorithm = blo.F2SA(
        lower_step=steps.exact_lower,
        upper_step=steps.power(steps.exact_upper, -1 / 3),
        multiplier=steps.power(1.0, 1 / 3),
        inner_steps=2,
    )
    at, values = trajectory(problem, algorithm, scale.exact, 0)
    what = f"|grad F|^2, full batches, {scale.exact} steps"
    return [_slope(algorithm, "1, k^-1/3, multiplier k^1/3", what, "-2/3 (log)", -2 / 3, last_tenfold(at, values))]


def _constant(problem: FiniteSum, steps: Steps, scale: Scale) -> list[Row]:
    """Constant steps: SABA on minibatches, AmIGO and stocBiO on full ones."""
    saba = blo.SABA(
        lower_step=steps.lower / 6,
        upper_step=steps.upper / 6,
        upper_count=len(problem.upper_batches[0]),
        lower_count=len(problem.lower_batches[0]),
    )
    rho, gamma = steps.exact_lower, steps.exact_upper
    rows = []
    for algorithm, batches, replicas, length in (
        (saba, "minibatches", 1, scale.noisy),
        (blo.AmIGO(lower_step=rho, upper_step=gamma), "full batches", 0, scale.exact),
        (blo.StocBiO(lower_step=rho, upper_step=gamma, products=100), "full batches", 0, scale.exact // 8),
    ):
        at, values = trajectory(problem, algorithm, length, replicas)
        if problem.linear and not isinstance(algorithm, blo.StocBiO):
            above = values > values[0] * ROUNDING
            slope, fit = line(at[above], values[above].log10())
            what = f"log10 |grad F|^2 a step, {batches}, until {ROUNDING:g} of the start (r^2 {fit:.3f})"
            name = type(algorithm).__name__
            cells: list[Cell] = [name, "constant", what, "linear", slope, float(values[0]), float(values[-1])]
            rows.append(Row(cells, Goal(f"{name}: |grad F|^2 over its start", float(values[-1] / values[0]), ROUNDING)))
        else:
            what = f"|grad F|^2, {batches}, {length} steps"
            rows.append(_slope(algorithm, "constant", what, "-1", -1.0, last_tenfold(at, values)))
    return rows


def _variance(problem: FiniteSum, steps: Steps, scale: Scale) -> list[Row]:
    """The variance of stocBiO's direction falls like one over the batch size."""
    sizes, errors = (1, 2, 4), []
    for times in sizes:
        batches = problem.join(problem.upper_batches, times), problem.join(problem.lower_batches, times)
        found = direction(problem, steps.lower / 4, 20, 16 * scale.replicas, batches)
        errors.append((found - found.mean(0)).square().sum(-1).mean())
    slope, _ = line(torch.tensor(sizes).double().log(), torch.stack(errors).log())
    what = "variance of the direction at the start, over batch sizes of ratio 1, 2, 4"
    return [_slope(blo.StocBiO, "constant", what, "-1", -1.0, (slope, errors[0], errors[-1]))]


def _neumann(problem: FiniteSum, steps: Steps, scale: Scale) -> list[Row]:
    """Each product of stocBiO's series contracts the bias of its direction."""
    products = (8, 16, 32, 64)
    truth = problem.hypergradient(problem.theta0[None])
    errors = [(direction(problem, steps.exact_lower, count, 0) - truth).square().sum() for count in products]
    slope, _ = line(torch.tensor(products).double(), torch.stack(errors).log())
    published = 2 * math.log(1 - steps.exact_lower * problem.curvatures[0])
    what = "log |bias of the direction|^2 at the start, full batches, a product of the series"
    cells: list[Cell] = ["StocBiO", "constant", what, f"{published:.3f}", slope, float(errors[0]), float(errors[-1])]
    return [Row(cells, Goal("StocBiO: contraction of the bias a product, over published", slope / published, 1, True))]


def _barrier(problem: FiniteSum, steps: Steps, scale: Scale) -> list[Row]:
    """BOME with a step of one over the square root of the horizon, by its own measure of stationarity."""
    problem = problem.in_units(steps.unit)
    horizons = [scale.exact // 16, scale.exact // 4, scale.exact]
    found = []
    for horizon in horizons:
        algorithm = blo.BOME(lower_step=steps.exact_lower, upper_step=horizon**-0.5, inner_steps=5)
        least = [torch.tensor(math.inf)]

        def look(state: State, least: list[Tensor] = least, every: int = max(1, horizon // 50)) -> None:
            if state["step"] % every == 0:
                least[0] = torch.minimum(least[0], _stationarity(problem, state))

        execute(problem, algorithm, horizon, 0, look)
        found.append(least[0])
    slope, _ = line(torch.tensor(horizons).double().log(), torch.stack(found).log())
    unit = f", theta in units of {steps.unit:g}" if steps.unit != 1 else ""
    what = f"least KKT measure in T full-batch steps, T = {', '.join(map(str, horizons))}{unit}"
    return [_slope(blo.BOME, "T^-1/2", what, "-1/4", -0.25, (slope, found[0], found[-1]))]


def _stationarity(problem: FiniteSum, state: State) -> Tensor:
    """Return `min over w >= 0 of |grad f + w grad q|^2 + q` with q the gap of g to its minimum (Liu et al., Sec. 4)."""
    theta, z = state["theta"], state["z"]
    upper, lower = problem.full
    best = problem.solve(theta)
    f = torch.cat(torch.func.grad(problem.upper, (0, 1))(theta, z, upper), -1)
    here, there = (torch.cat(torch.func.grad(problem.lower, (0, 1))(theta, p, lower), -1) for p in (z, best))
    slope = here - there
    gap = problem.lower(theta, z, lower) - problem.lower(theta, best, lower)
    weight = (-(f * slope).sum() / slope.square().sum()).clamp(min=0).nan_to_num(0)
    return (f + weight * slope).square().sum() + gap


def _slope(
    algorithm: Any, schedule: str, what: str, published: str, exponent: float, found: tuple[float, Tensor, Tensor]
) -> Row:
    name = algorithm.__name__ if isinstance(algorithm, type) else type(algorithm).__name__
    slope, first, last = found
    cells = [name, schedule, what, published, slope, float(first), float(last)]
    return Row(cells, Goal(f"{name}: exponent, {what}", slope, exponent + SLACK))

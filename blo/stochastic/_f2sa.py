"""F2SA: the hypergradient from a growing penalty and first derivatives alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from blo._failures import Checks
from blo._scheduled import OptimizerFactory, SchedulerFactory
from blo._settings import require_count
from blo.stochastic._base import Algorithm, Memory
from blo.stochastic._descent import Descent, require_descent
from blo.stochastic._oracle import Oracle
from blo.stochastic._schedule import Power, Schedule, at, require

#: Steps of theta in units of all steps of y above which no problem is known on which they settle.
_FAR = 300


@final
@dataclass(frozen=True, kw_only=True)
class F2SA(Algorithm):
    """Fully first-order stochastic approximation: no second derivative is ever formed.

    z follows the minimiser of g and y that of `f + multiplier * g`; theta moves along
    `grad_theta f(theta, y) + multiplier * (grad_theta g(theta, y) - grad_theta g(theta, z))`, whose distance from the
    hypergradient is O(1 / multiplier). y is kept in `state["memory"]["y"]`. A step takes `2 * inner_steps + 2` lower
    batches and `inner_steps + 1` upper batches.

    Args:
        lower_step: step size of z, and twice the multiplier times that of y; None with a `lower_optimizer`.
        upper_step: step size of theta. The difference that theta follows is `multiplier` times as stiff as f, and z
            and y must keep up with it: `upper_step * multiplier` has to stay at or below the order of
            `inner_steps * lower_step`, the less the more theta moves the lower solution. By default it is
            `lower_step / (2 * multiplier)` at every step, the step of y in its objective `f + multiplier * g`, with
            which the exponents below agree. With a `lower_optimizer` it has to be given.
        multiplier: weight of g against f. A constant leaves a bias.
        inner_steps: steps on z and on y.
        lower_optimizer: makes a torch optimiser of z, and another of y, in place of plain steps: `lambda parameters:
            torch.optim.Adam(parameters, lr=0.1)`. That of y gets the gradient of `f / (2 * multiplier) + g / 2`, so
            that plain SGD makes the steps above. The analysis assumes g strongly convex in z, plain steps, and the
            coupling of steps and multiplier above; with another optimiser the rates are not proved, and whether theta
            outruns z and y at the start is not looked at.
        lower_scheduler: makes the schedule of its learning rate from the optimiser; stepped once a step.

    The expected squared norm of the hypergradient is O(log T / T^(2/7)) with noise in both objectives and exponents
    -4/7, -5/7 and 1/7 of the two steps and the multiplier; O(log T / T^(2/3)) without noise and exponents 0, -1/3 and
    1/3.

    Raises:
        ValueError: if `lower_step` and `lower_optimizer` are both given or both missing, `upper_step` is missing beside
            the latter, a step size or the multiplier is not positive, or `inner_steps` is below 1.

    Source: Kwon, Kwon, Wright and Nowak, ICML 2023, Algorithm 1 and Sec. 4, with `multiplier` the ratio
    `gamma / (2 alpha)` of their step sizes.
    """

    lower_step: Schedule | None = None
    upper_step: Schedule | None = None
    multiplier: Schedule = field(default_factory=lambda: Power(1.0, 1 / 7))
    inner_steps: int = 1
    lower_optimizer: OptimizerFactory | None = None
    lower_scheduler: SchedulerFactory | None = None

    def __post_init__(self) -> None:
        require_descent(self)
        if self.upper_step is not None:
            require(self.upper_step, "upper_step")
        elif self.lower_step is None:
            raise ValueError("`upper_step` must be given with a `lower_optimizer`, whose steps tell no default.")
        require(self.multiplier, "multiplier")
        require_count(self.inner_steps, "inner_steps")

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        return {"y": z.clone()}

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        lower, weight = Descent(self, k, memory), at(self.multiplier, k, "multiplier")
        y: Tensor = memory["y"]
        for _ in range(self.inner_steps):
            z = lower.move("z", z, oracle.lower().slope(theta, z))
            pull, push = oracle.upper().gradients(theta, y)[1], oracle.lower().slope(theta, y)
            y = lower.move("y", y, pull + weight * push, over=2 * weight)
        direct = oracle.upper().gradients(theta, y)[0]
        difference = oracle.lower().gradients(theta, y)[0] - oracle.lower().gradients(theta, z)[0]
        step = self._step(k, weight, oracle.checks)
        return theta - step * (direct + weight * difference), z, {"y": y, **lower.memory()}

    def _step(self, k: int, weight: float, checks: Checks) -> float:
        """Return the step size of theta; at the first step warn if it is far above that of y."""
        given = None if self.upper_step is None else at(self.upper_step, k, "upper_step")
        if self.lower_step is None:
            assert given is not None
            return given
        gamma = at(self.lower_step, k, "lower_step")
        own = gamma / (2 * weight)
        if k == 0 and given is not None and given > _FAR * self.inner_steps * own:
            checks.unsettled(
                f"theta outruns z and y: `upper_step` is {given:.3g}, and with a `multiplier` of {weight:.3g} and a "
                f"`lower_step` of {gamma:.3g} it should be about {own:.3g}. Leave `upper_step` out, which couples them"
            )
        return own if given is None else given

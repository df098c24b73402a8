"""F2SA: the hypergradient from first derivatives, by a growing penalty."""

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

#: Largest ratio of a step of theta to the steps of y in one iteration. Above it, no tested problem converged.
_FAR = 300


@final
@dataclass(frozen=True, kw_only=True)
class F2SA(Algorithm):
    """Fully first-order stochastic approximation, which uses no second derivatives.

    z follows the minimiser of g, and y that of `f + multiplier * g`. theta moves along
    `grad_theta f(theta, y) + multiplier * (grad_theta g(theta, y) - grad_theta g(theta, z))`, whose distance from the
    hypergradient is O(1 / multiplier). The state holds y in `state["memory"]["y"]`. A step takes `2 * inner_steps + 2`
    lower batches and `inner_steps + 1` upper batches.

    Args:
        lower_step: step size of z; the step size of y is this over `2 * multiplier`. None with a `lower_optimizer`.
        upper_step: step size of theta. The direction of theta is `multiplier` times as stiff as f, and z and y must
            follow theta: `upper_step * multiplier` must be at most of the order of `inner_steps * lower_step`, and
            smaller if the lower solution depends strongly on theta. By default it is `lower_step / (2 * multiplier)` at
            every step, which is the step size of y and agrees with the exponents below. With a `lower_optimizer` it
            must be given.
        multiplier: weight of g relative to f. A constant multiplier leaves a bias.
        inner_steps: number of steps on z and on y.
        lower_optimizer: creates a torch optimiser for z, and another for y, instead of plain gradient steps: `lambda
            parameters: torch.optim.Adam(parameters, lr=0.1)`. The optimiser of y gets the gradient of
            `f / (2 * multiplier) + g / 2`, so that plain SGD makes the steps above. The analysis assumes that g is
            strongly convex in z, plain steps, and the relation of steps and multiplier above. With another optimiser
            the rates are not proved, and the ratio of the step sizes is not checked at the first step.
        lower_scheduler: creates the learning-rate schedule from the optimiser; it advances once per step.

    The expected squared norm of the hypergradient is O(log T / T^(2/7)) with noise in both objectives, for the
    exponents -4/7, -5/7 and 1/7 of the two step sizes and the multiplier. Without noise it is O(log T / T^(2/3)), for
    the exponents 0, -1/3 and 1/3.

    Raises:
        ValueError: if `lower_step` and `lower_optimizer` are both given or both missing, `upper_step` is missing with a
            `lower_optimizer`, `lower_scheduler` is given without one, a step size or the multiplier is not positive, or
            `inner_steps` is below 1.
        StructureError: if `lower_optimizer` or `lower_scheduler` is not a function.

    Source: Kwon, Kwon, Wright and Nowak, ICML 2023, Algorithm 1 and Sec. 4, where `multiplier` is the ratio
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
            raise ValueError("`upper_step` must be given with a `lower_optimizer`, whose step size gives no default.")
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
            # Divided by 2 * weight, the direction keeps its scale while the multiplier grows.
            y = lower.move("y", y, pull + weight * push, over=2 * weight)
        # Danskin's theorem: the derivative in theta of min_y (f + weight g) - weight min_z g is that at fixed y and z.
        direct = oracle.upper().gradients(theta, y)[0]
        # As in the paper, the two gradients of g are on different batches.
        difference = oracle.lower().gradients(theta, y)[0] - oracle.lower().gradients(theta, z)[0]
        step = self._step(k, weight, oracle.checks)
        return theta - step * (direct + weight * difference), z, {"y": y, **lower.memory()}

    def _step(self, k: int, weight: float, checks: Checks) -> float:
        """Return the step size of theta. At the first step, warn if it is much larger than that of y."""
        given = None if self.upper_step is None else at(self.upper_step, k, "upper_step")
        if self.lower_step is None:
            assert given is not None
            return given
        gamma = at(self.lower_step, k, "lower_step")
        own = gamma / (2 * weight)
        if k == 0 and given is not None and given > _FAR * self.inner_steps * own:
            checks.unsettled(
                f"theta moves too fast for z and y: `upper_step` is {given:.3g}, but with a `multiplier` of "
                f"{weight:.3g} and a `lower_step` of {gamma:.3g} it should be about {own:.3g}. Leave out `upper_step` "
                "to use this value at every step"
            )
        return own if given is None else given

"""F2SA: the hypergradient from a growing penalty and first derivatives alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from blo._settings import require_count
from blo.stochastic._base import Algorithm, Memory
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
        lower_step: step size of z, and twice the multiplier times that of y.
        upper_step: step size of theta. The difference that theta follows is `multiplier` times as stiff as f, and z
            and y must keep up with it: `upper_step * multiplier` has to stay at or below the order of
            `inner_steps * lower_step`, the less the more theta moves the lower solution. By default it is
            `lower_step / (2 * multiplier)` at every step, the step of y in its objective `f + multiplier * g`, with
            which the exponents below agree.
        multiplier: weight of g against f. A constant leaves a bias.
        inner_steps: steps on z and on y.

    The expected squared norm of the hypergradient is O(log T / T^(2/7)) with noise in both objectives and exponents
    -4/7, -5/7 and 1/7 of the two steps and the multiplier; O(log T / T^(2/3)) without noise and exponents 0, -1/3 and
    1/3.

    Raises:
        ValueError: if a step size or the multiplier is not positive, or `inner_steps` is below 1.

    Source: Kwon, Kwon, Wright and Nowak, ICML 2023, Algorithm 1 and Sec. 4, with `multiplier` the ratio
    `gamma / (2 alpha)` of their step sizes.
    """

    lower_step: Schedule
    upper_step: Schedule | None = None
    multiplier: Schedule = field(default_factory=lambda: Power(1.0, 1 / 7))
    inner_steps: int = 1

    def __post_init__(self) -> None:
        require(self.lower_step, "lower_step")
        if self.upper_step is not None:
            require(self.upper_step, "upper_step")
        require(self.multiplier, "multiplier")
        require_count(self.inner_steps, "inner_steps")

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        return {"y": z.clone()}

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        gamma, weight = at(self.lower_step, k, "lower_step"), at(self.multiplier, k, "multiplier")
        y: Tensor = memory["y"]
        for _ in range(self.inner_steps):
            z = z - gamma * oracle.lower().slope(theta, z)
            pull, push = oracle.upper().gradients(theta, y)[1], oracle.lower().slope(theta, y)
            y = y - gamma / (2 * weight) * (pull + weight * push)
        direct = oracle.upper().gradients(theta, y)[0]
        difference = oracle.lower().gradients(theta, y)[0] - oracle.lower().gradients(theta, z)[0]
        own = gamma / (2 * weight)
        step = own if self.upper_step is None else at(self.upper_step, k, "upper_step")
        if k == 0 and step > _FAR * self.inner_steps * own:
            oracle.checks.unsettled(
                f"theta outruns z and y: `upper_step` is {step:.3g}, and with a `multiplier` of {weight:.3g} and a "
                f"`lower_step` of {gamma:.3g} it should be about {own:.3g}. Leave `upper_step` out, which couples them"
            )
        return theta - step * (direct + weight * difference), z, {"y": y}

"""Diagnostics of one hypergradient, computed from its tensors when they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blo._autodiff import as_tensor
from blo._failures import unasked
from blo._status import Status
from blo.gradients import Pulled
from blo.solvers import Solution

#: Relative residual up to which an adjoint that has no tolerance counts as a solution.
_SOLVED = 1e-6


@dataclass(frozen=True, eq=False)
class Report:
    """Diagnostics of one hypergradient. Each attribute is computed on first use: reading waits for the device.

    Args:
        solution: what the lower solver returned.
        pulled: what the strategy returned.
        direct_parts: the direct part, leaf by leaf.
        implicit_parts: the implicit part, leaf by leaf.
        linear_tol: tolerance of the linear solve; None for an intended approximation.
        strong_convexity: that of the lower problem, where it is known.
        solution_error: computes a bound of the lower solution's error for each lane.
    """

    solution: Solution
    pulled: Pulled
    direct_parts: Sequence[Tensor]
    implicit_parts: Sequence[Tensor | None]
    linear_tol: float | None
    strong_convexity: float | None = None
    solution_error: Callable[[], Tensor] | None = None

    @cached_property
    def lower_residual(self) -> float | None:
        """Largest `|z - prox(z - gradient)|` over the lanes; None if it was not measured.

        `LBFGS` and `FISTA` with `relative=True`, as chosen by default, measure `|z - prox(z - s gradient)| / s` with
        the step s = 1 / curvature.
        """
        return None if self._residuals is None else float(self._residuals.max())

    @cached_property
    def lower_status(self) -> Status:
        """How the lower solve ended."""
        residual, tol = self._residuals, self._limit
        # This comes first: NaN is not below a tolerance either, and would count as unconverged.
        if not bool(torch.isfinite(self.solution.z).all()) or not math.isfinite(self.lower_residual or 0.0):
            return Status.NON_FINITE
        if self.solution.random is not None and bool(self.solution.random.any()):
            return Status.RANDOM
        if tol is None or residual is None:
            return Status.UNCHECKED
        if not self._asked_for:
            return Status.GIVEN
        return Status.CONVERGED if bool((residual <= tol).all()) else Status.UNCONVERGED

    @cached_property
    def _residuals(self) -> Tensor | None:
        """The residual of each lane, measured by the solver or else by the strategy."""
        known, optimality = self.solution.residual, self.pulled.optimality
        return optimality.residual if known is None and optimality is not None else known

    @cached_property
    def lower_steps(self) -> int:
        """Steps of the lower solver."""
        return self.solution.steps

    @cached_property
    def linear_residual(self) -> float | None:
        """Largest relative residual of the adjoint system over the lanes; None without such a system.

        Also None for `HessianFree`, `SAMA` and `Identity`, which solve another system instead.
        """
        linear = self.pulled.linear
        return None if linear is None or not linear.measured else float(linear.residual.max())

    @cached_property
    def linear_iterations(self) -> int:
        """Largest number of iterations of the linear solver in any lane."""
        linear = self.pulled.linear
        return 0 if linear is None else int(linear.iterations.max())

    @cached_property
    def linear_status(self) -> Status:
        """How the adjoint system was solved."""
        linear = self.pulled.linear
        if linear is None:
            return Status.UNUSED
        if not bool((torch.isfinite(linear.x).all(-1) & torch.isfinite(linear.residual)).all()):
            return Status.NON_FINITE
        if bool(linear.indefinite.any()):
            return Status.INDEFINITE
        if not bool(linear.converged(self.linear_tol).all()):
            return Status.UNCONVERGED
        return Status.UNCHECKED if self.linear_tol is None or not linear.measured else Status.CONVERGED

    @property
    def linear_method(self) -> str:
        """Name of the linear solver, and of the method that `Auto` chose; empty without one."""
        return "" if self.pulled.linear is None else self.pulled.linear.method

    @cached_property
    def product_error(self) -> float | None:
        """Estimated relative error of finite-difference products; None for exact ones.

        It is measured on first use, at the cost of about ten gradients: read it before captured data changes.
        """
        return None if self.pulled.error is None else self.pulled.error()

    @cached_property
    def lower_error_bound(self) -> float | None:
        """Largest upper bound of `|z - z*|` over the lanes; None where no `strong_convexity` is known.

        It is computed on first use from three gradients: read it before captured data changes.
        """
        return None if self.solution_error is None else float(self.solution_error().max())

    @cached_property
    def adjoint_error_bound(self) -> float | None:
        """Largest upper bound of `|q - q*|` over the lanes; None without an adjoint or a known `strong_convexity`.

        q* solves the adjoint system at the lower solution found, with the true Hessian and without damping, so the
        bound includes the error of an approximate inverse. It is `|P v - P (H + K) P q| / strong_convexity`, computed
        on first use from one gradient and one product.
        """
        if self.strong_convexity is None or self.pulled.defect is None:
            return None
        return float(self.pulled.defect().max()) / self.strong_convexity

    @cached_property
    def _counts(self) -> tuple[int, int, int] | None:
        optimality = self.pulled.optimality
        if optimality is None:
            return None
        counts = optimality.tangent.counts()
        return int(counts.free.sum()), int(counts.active.sum()), int(counts.degenerate.sum())

    @property
    def free(self) -> int | None:
        """Directions in which the solution can move, of all lanes together; None if not counted."""
        return None if self._counts is None else self._counts[0]

    @property
    def active(self) -> int | None:
        """Directions that the constraints hold, of all lanes together: `n - free` of each; None if not counted."""
        return None if self._counts is None else self._counts[1]

    @property
    def degenerate(self) -> int | None:
        """Active constraints whose multiplier is zero, of all lanes together; None if not counted."""
        return None if self._counts is None else self._counts[2]

    @cached_property
    def depends_on_theta(self) -> bool:
        """Whether theta enters the lower problem at all, as far as the strategy shows it."""
        return any(part is not None for part in self.implicit_parts)

    @cached_property
    def direct_norm(self) -> float:
        """2-norm of the direct part."""
        return _norm(self.direct_parts)

    @cached_property
    def implicit_norm(self) -> float:
        """2-norm of the implicit part."""
        return _norm([part for part in self.implicit_parts if part is not None])

    @cached_property
    def cosine(self) -> float:
        """Cosine of the angle between the parts; zero when one of them vanishes."""
        pairs = zip(self.direct_parts, self.implicit_parts, strict=True)
        product = sum(float((d.double() * i.double()).sum()) for d, i in pairs if i is not None)
        scale = self.direct_norm * self.implicit_norm
        return product / scale if scale else 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Return what can be saved: all diagnostics, computed now, without the functions that compute them.

        These functions hold the objective and what it captures.
        """
        for name, attribute in vars(type(self)).items():
            if isinstance(attribute, cached_property):
                getattr(self, name)
        pulled = replace(self.pulled, optimality=None, error=None, defect=None)
        return {**vars(self), "pulled": pulled, "solution_error": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def ok(self) -> bool:
        """Whether the report shows no problem with the hypergradient.

        An intended approximation of the adjoint passes if its residual is at most 1e-6 or at rounding level, and fails
        if the residual was not measured.
        """
        fine = (Status.CONVERGED, Status.UNCHECKED, Status.GIVEN)
        loose = self.pulled.loose is not None and bool(self.pulled.loose.any())
        return self.lower_status in fine and self._inverted and not (self.degenerate or loose or self._elsewhere)

    @property
    def _asked_for(self) -> bool:
        """Whether the lower solver has a finite tolerance."""
        tol = self.solution.tol
        return tol is not None and not (isinstance(tol, float) and math.isinf(tol))

    @property
    def _limit(self) -> Tensor | float | None:
        """The residual above which the point is not a solution, a number or shape `lanes`; None without a tolerance."""
        solution = self.solution
        return solution.tol if solution.tol is None or solution.limit is None else solution.limit

    @property
    def _elsewhere(self) -> bool:
        """Whether a fixed number of steps ended where the implicit function theorem does not hold."""
        if self._asked_for or self._residuals is None:
            return False
        limit = self.solution.limit
        return not bool((self._residuals <= (unasked(self._residuals.dtype) if limit is None else limit)).all())

    @property
    def _inverted(self) -> bool:
        """Whether the adjoint solves its system, if there is one."""
        linear = self.pulled.linear
        if linear is None or self.linear_status is not Status.UNCHECKED:
            return self.linear_status in (Status.CONVERGED, Status.UNUSED)
        # An adjoint of zero is that of an upper gradient of zero, whatever the inverse.
        return bool(linear.converged(_SOLVED).all()) if linear.measured else not bool(linear.x.any())

    @property
    def _asked(self) -> str:
        """The tolerance of the lane with the largest residual: that of the solver, or what rounding allows there."""
        residual, tol = self._residuals, self._limit
        if residual is None or tol is None or not self._asked_for:
            return ""
        limits = as_tensor(tol).broadcast_to(residual.shape).flatten()
        return f" of {float(limits[residual.flatten().argmax()]):.2e} allowed"

    def __str__(self) -> str:
        rows = {
            "lower solve": f"{self.lower_status}, residual {_show(self.lower_residual)}{self._asked}, "
            f"{self.lower_steps} steps",
            "linear solve": f"{self.linear_status}, relative residual {_show(self.linear_residual)}, "
            f"{self.linear_iterations} iterations" + (f", {self.linear_method}" if self.linear_method else ""),
            "coordinates": f"{self.free} free, {self.active} active, {self.degenerate} degenerate",
            "direct part": f"norm {self.direct_norm:.6g}",
            "implicit part": f"norm {self.implicit_norm:.6g}",
        }
        if self.pulled.linear is None:
            rows["linear solve"] = str(self.linear_status)
        if self._counts is None:
            rows["coordinates"] = "not counted"
        if self.direct_norm and self.implicit_norm:
            rows["implicit part"] += f", cosine with the direct part {self.cosine:+.4f}"
        if self.product_error is not None:
            rows["products"] = f"central differences, estimated relative error {self.product_error:.2e}"
        if self.lower_error_bound is not None:
            rows["error bounds"] = f"lower solution {self.lower_error_bound:.2e}"
            if self.adjoint_error_bound is not None:
                rows["error bounds"] += f", adjoint {self.adjoint_error_bound:.2e}"
        return "\n".join(f"{name:<14} {text}" for name, text in rows.items())


def _norm(parts: Sequence[Tensor]) -> float:
    # The squares of float32 entries overflow above 2e19 and underflow below 3e-23.
    return float(sum(float(part.double().pow(2).sum()) for part in parts) ** 0.5)


def _show(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2e}"

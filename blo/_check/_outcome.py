"""The outcome of a check."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from blo._hypergrad import Hypergradient


class Part(enum.Enum):
    """A part of the hypergradient. The value is the sentence printed when it is wrong."""

    LOWER = "the lower solve: the point that the solver returned is not the solution"
    DIRECT = "the direct part: the upper objective's own gradients are not those of its values"
    TANGENT = "the tangent (P, K, N): the set or penalty does not describe how its solutions move"
    INVERSE = "the inverse: the adjoint q does not solve P (H + K) P q = P v"
    CROSS = "the cross term: the products with B and N are not those of the lower gradient and the set"
    IMPLICIT = "the implicit part: the strategy does not expose parts that could be checked one by one"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Direction:
    """The derivative of F along one direction of theta.

    Attributes:
        predicted: by the hypergradient.
        measured: by differences of the re-solved problem.
        noise: the uncertainty of the measured derivative.
    """

    predicted: float
    measured: float
    noise: float

    @property
    def error(self) -> float:
        """Absolute difference of the two derivatives."""
        return abs(self.predicted - self.measured)


@dataclass(frozen=True)
class Finding:
    """One ingredient, recomputed without the strategy.

    Attributes:
        part: what it belongs to.
        name: what was compared.
        error: size of the difference, relative to what was compared.
        tolerance: the error allowed.
    """

    part: Part
    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True, eq=False)
class Check:
    """The outcome of `check_hypergrad`.

    Attributes:
        directions: derivatives of F along random unit directions of theta.
        lower_error: distance from the solver's solution to the tightly solved one.
        resolved: largest residual `|z - prox(z - gradient)|` that the tight solves reached.
        scale: norm of the hypergradient, or the largest measured derivative where that is larger.
        rtol: error allowed relative to `scale`, on top of the noise.
        findings: the ingredients of the hypergradient at the tightly solved point, in the order of the formula.
        consistency: adjointness and scale: properties that hold at any point and need no differences of F.
        settled: whether the strategy's hypergradient at the tightly solved point agrees with the differences; None
            if it cannot be computed there.
        hypergradient: what was checked.
    """

    directions: tuple[Direction, ...]
    lower_error: float
    resolved: float
    scale: float
    rtol: float
    findings: tuple[Finding, ...]
    consistency: tuple[Finding, ...]
    settled: bool | None
    hypergradient: Hypergradient

    @property
    def ok(self) -> bool:
        """Whether every derivative agrees with the measured one, and adjointness and scale hold."""
        return self._agrees and self.conclusive and all(finding.ok for finding in self.consistency)

    @property
    def conclusive(self) -> bool:
        """Whether the noise is low enough for a verdict: at most a tenth of the derivatives, or of F."""
        # At an optimum of F the derivatives vanish, and no noise is small compared with them.
        size = max(self.scale, abs(float(self.hypergradient.value)))
        return all(direction.noise <= 0.1 * size for direction in self.directions)

    @property
    def culprit(self) -> Part | None:
        """The first part that is wrong; None when nothing is. Its `str` is a sentence."""
        if self.ok:
            return None
        wrong = [finding.part for finding in (*self.findings, *self.consistency) if not finding.ok]
        # The strategy is right at the solution, so only the point at which it was used can be wrong.
        if self.settled and not self._agrees:
            return Part.LOWER
        if self.settled is not None:  # it is also wrong at the solution, so the lower solve is not the only cause
            wrong = [part for part in wrong if part is not Part.LOWER]
        if wrong:
            return wrong[0]
        return Part.IMPLICIT if self.conclusive else Part.LOWER

    @property
    def _agrees(self) -> bool:
        return all(d.error <= self.rtol * self.scale + d.noise for d in self.directions)

    def __str__(self) -> str:
        verdict = "agrees with finite differences" if self._agrees else "DISAGREES with finite differences"
        if not self.conclusive:
            verdict = "CANNOT BE JUDGED: the noise of the tight solves is not small compared with the derivatives"
        elif self._agrees and not self.ok:
            verdict = "agrees with finite differences, but is INCONSISTENT"
        rows = [f"the hypergradient {verdict}"]
        if self.culprit is not None:
            rows += [f"what is wrong: {self.culprit}"]
        rows += ["  predicted        measured         error     noise floor"]
        rows += [f"{d.predicted:+.8e}  {d.measured:+.8e}  {d.error:.2e}  {d.noise:.2e}" for d in self.directions]
        findings = [*self.findings, *self.consistency]
        width = max((len(finding.name) for finding in findings), default=0)
        rows += [
            f"{'ok   ' if f.ok else 'WRONG'} {f.name:<{width}}  error {f.error:.2e}, allowed {f.tolerance:.2e}"
            for f in findings
        ]
        rows += [
            f"distance of the lower solution from the tightly solved one: {self.lower_error:.2e} "
            f"(tight solves reached a residual of {self.resolved:.2e})"
        ]
        return "\n".join([*rows, str(self.hypergradient.report)])

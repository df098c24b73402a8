"""What became of each sample of a judged model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from adv_train.evaluation.alarms import collapse
from adv_train.evaluation.intervals import wilson
from adv_train.threat import Threat

Flags = npt.NDArray[np.bool_]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Examples:
    """Some attacked samples, to look at.

    Attributes:
        clean: Images ``(k, C, H, W)``, float32.
        adversarial: What the attack made of them, likewise.
        label: True classes ``(k,)``.
        before: Predicted classes of the clean images ``(k,)``.
        after: Predicted classes of the adversarial images ``(k,)``.
    """

    clean: npt.NDArray[np.float32]
    adversarial: npt.NDArray[np.float32]
    label: Classes
    before: Classes
    after: Classes


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one attack did.

    Attributes:
        robust: Whether each sample withstands it, ``(n,)``.
        predicted: Class of the image that it made of each sample ``(n,)``, -1 for none; None in records of the first
            format, which kept verdicts only.
        settings: How hard it tried, in plain values.
        warnings: What it found that makes its verdict doubtful.
        rounded: Whether each sample is still classified correctly when the image that the attack made of it is rounded
            to 8 bits, ``(n,)``; None where that was not asked for.
    """

    robust: Flags
    predicted: Classes | None
    settings: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    rounded: Flags | None = None

    @property
    def accuracy(self) -> float:
        """Fraction of samples that withstand the attack."""
        return float(self.robust.mean())


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What became of each sample, clean and under each attack.

    Attributes:
        threat: What the attacks were allowed.
        seed: Of the attacks.
        clean: Whether each clean sample is classified correctly, ``(n,)``.
        attacks: What each attack did, by its name.
        labels: True classes ``(n,)``; None in records of the first format.
        predicted: Predicted classes of the clean images ``(n,)``, -1 for none; None likewise.
        examples: Samples with their images under the first attack whose images were at hand; None without one.
        class_names: In the order of the labels; empty where they are not known.
        files: File of each sample; empty where samples have no files.
        about: What else belongs to the record: checkpoint, epoch, data set, versions, in plain values.
        of: Size of the test set that the samples are from; None where it is not known.
    """

    threat: Threat
    seed: int
    clean: Flags
    attacks: Mapping[str, Outcome]
    labels: Classes | None = None
    predicted: Classes | None = None
    examples: Examples | None = None
    class_names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    of: int | None = None

    @property
    def eps(self) -> float:
        """Radius of the attacks."""
        return self.threat.eps

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.clean)

    @property
    def sa(self) -> float:
        """Fraction of clean samples that are classified correctly."""
        return float(self.clean.mean())

    @property
    def ra_pgd(self) -> float | None:
        """Fraction of samples that withstand PGD; None where it was not run."""
        return self._accuracy("pgd")

    @property
    def ra_aa(self) -> float | None:
        """Fraction of samples that withstand AutoAttack; None where it was not run."""
        return self._accuracy("autoattack")

    def _accuracy(self, name: str) -> float | None:
        return self.attacks[name].accuracy if name in self.attacks else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures doubtful: collapsed predictions, and what the attacks found."""
        collapsed = None
        if self.labels is not None and self.predicted is not None:
            collapsed = collapse(self.labels, self.predicted)
        found = [f"{name}: {warning}" for name, outcome in self.attacks.items() for warning in outcome.warnings]
        return (*([collapsed] if collapsed else []), *found)

    def per_class(self) -> list[dict[str, Any]]:
        """Give for each class its ``name``, ``n``, ``sa`` and ``ra`` by attack (None where it has no samples)."""
        if self.labels is None:
            return []
        found = []
        for label in range(max(len(self.class_names), int(self.labels.max()) + 1)):
            chosen = self.labels == label
            n = int(chosen.sum())
            ra = {name: float(outcome.robust[chosen].mean()) if n else None for name, outcome in self.attacks.items()}
            name = self.class_names[label] if label < len(self.class_names) else str(label)
            found.append({"name": name, "n": n, "sa": float(self.clean[chosen].mean()) if n else None, "ra": ra})
        return found

    def intervals(self) -> dict[str, Any]:
        """Give Wilson's 95 % interval of ``sa``, and in ``ra`` of the accuracy under each attack.

        They say how far the choice of the samples moves an accuracy, not what another seed of the training does.
        """

        def of(flags: Flags) -> list[float]:
            return list(wilson(int(flags.sum()), len(flags)))

        return {"sa": of(self.clean), "ra": {name: of(outcome.robust) for name, outcome in self.attacks.items()}}

    def after_rounding(self) -> dict[str, dict[str, Any]]:
        """Give for each attack what rounding its images to 8 bits changed, where that was asked for.

        ``ra`` is the accuracy on the rounded images, ``broken`` how many correct samples the attack broke, ``stay`` how
        many of these stay adversarial, and ``more`` how many others rounding breaks.
        """
        found = {}
        for name, outcome in self.attacks.items():
            if outcome.rounded is not None:
                broken = self.clean & ~outcome.robust
                found[name] = {
                    "ra": float(outcome.rounded.mean()),
                    "broken": int(broken.sum()),
                    "stay": int((broken & ~outcome.rounded).sum()),
                    "more": int((outcome.robust & ~outcome.rounded).sum()),
                }
        return found

    def summary(self) -> dict[str, Any]:
        """Give the figures in plain values, with what `about` adds to them."""
        return {
            "sa": self.sa,
            "ra_pgd": self.ra_pgd,
            "ra_aa": self.ra_aa,
            "ra": {name: outcome.accuracy for name, outcome in self.attacks.items()},
            "intervals": self.intervals(),
            "n": self.n,
            **({} if self.of is None else {"of": self.of}),
            "norm": self.threat.norm,
            "eps": self.eps,
            "range": [self.threat.low, self.threat.high],
            "seed": self.seed,
            "attacks": {name: dict(outcome.settings) for name, outcome in self.attacks.items()},
            **({"rounded": rounded} if (rounded := self.after_rounding()) else {}),
            "warnings": list(self.warnings),
            "per_class": self.per_class(),
            **self.about,
        }

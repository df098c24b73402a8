"""The record of an evaluation: the outcome for each sample, clean and under each attack."""

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
        adversarial: The attack's images of these samples, of the same shape and dtype.
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
    """The outcome of one attack.

    Attributes:
        robust: Whether each sample withstands the attack, ``(n,)``.
        predicted: Predicted class of the attack's image of each sample ``(n,)``, -1 if the logits are not finite; None
            in records of the first format, which kept verdicts only.
        settings: Settings of the attack, in plain values.
        warnings: Warnings of the attack that its verdict is doubtful.
        rounded: Whether the attack's image of each sample, rounded to 8 bits, is still classified correctly, ``(n,)``;
            None if the images were not rounded.
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
    """The outcome for each sample, clean and under each attack.

    Attributes:
        threat: Threat of the attacks.
        seed: Seed of the attacks.
        clean: Whether each clean sample is classified correctly, ``(n,)``.
        attacks: Outcome of each attack, by its name.
        labels: True classes ``(n,)``; None in records of the first format.
        predicted: Predicted classes of the clean images ``(n,)``, -1 if the logits are not finite; None in records of
            the first format.
        examples: Samples with their images under the first attack that kept its images; None if no attack did.
        class_names: Names of the classes in the order of the labels; empty if they are not known.
        files: File of each sample; empty if samples have no files.
        about: Other facts of the record, such as checkpoint, epoch, data set and versions, in plain values.
        of: Size of the test set from which the samples are; None if it is not known.
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
        """Fraction of samples that withstand PGD; None if it was not run."""
        return self._accuracy("pgd")

    @property
    def ra_aa(self) -> float | None:
        """Fraction of samples that withstand AutoAttack; None if it was not run."""
        return self._accuracy("autoattack")

    def _accuracy(self, name: str) -> float | None:
        return self.attacks[name].accuracy if name in self.attacks else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the figures: collapsed predictions, and the warnings of the attacks."""
        collapsed = None
        if self.labels is not None and self.predicted is not None:
            collapsed = collapse(self.labels, self.predicted)
        found = [f"{name}: {warning}" for name, outcome in self.attacks.items() for warning in outcome.warnings]
        return (*([collapsed] if collapsed else []), *found)

    def per_class(self) -> list[dict[str, Any]]:
        """Return for each class its ``name``, ``n``, ``sa`` and ``ra`` by attack (None if it has no samples)."""
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
        """Return Wilson's 95 % interval of ``sa``, and in ``ra`` that of the accuracy under each attack.

        The intervals measure the effect of the choice of samples, not that of another training seed.
        """

        def of(flags: Flags) -> list[float]:
            return list(wilson(int(flags.sum()), len(flags)))

        return {"sa": of(self.clean), "ra": {name: of(outcome.robust) for name, outcome in self.attacks.items()}}

    def after_rounding(self) -> dict[str, dict[str, Any]]:
        """Return the effect of rounding the images to 8 bits, for each attack whose images were rounded.

        ``ra`` is the accuracy on the rounded images; ``broken`` counts the correctly classified samples that the attack
        broke, ``stay`` those of them that stay broken after rounding, and ``more`` the other samples that rounding
        breaks.
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
        """Return the figures in plain values, followed by the entries of `about`."""
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

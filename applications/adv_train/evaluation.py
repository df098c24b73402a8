"""The record of a judged model: what became of each sample, on disk and in memory."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adv_train.errors import UserError
from adv_train.files import replace_file

EVAL_FILE = "eval.json"
OUTCOMES_FILE = "outcomes.npz"
Outcomes = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Examples:
    """Some attacked samples, to look at.

    Attributes:
        clean: Images ``(k, C, H, W)``, float32 in [0, 1].
        adversarial: What the attack made of them, likewise.
        label: True classes ``(k,)``.
        before: Predicted classes of the clean images ``(k,)``.
        after: Predicted classes of the adversarial images ``(k,)``.
    """

    clean: npt.NDArray[np.float32]
    adversarial: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What became of each sample, and how it was attacked.

    Attributes:
        eps: Radius of the attacks in units of images in [0, 1].
        seed: Of the attacks.
        clean: Whether each clean sample is classified correctly, ``(n,)``.
        pgd: Whether each sample withstands PGD, ``(n,)``; ``None`` where it was not run.
        autoattack: Whether each sample withstands AutoAttack, ``(n,)``; ``None`` where it was not run.
        settings: Of each attack that was run, in plain values.
        examples: Samples with their PGD images (AutoAttack's where PGD was not run, none where neither was).
    """

    eps: float
    seed: int
    clean: Outcomes
    pgd: Outcomes | None
    autoattack: Outcomes | None
    settings: Mapping[str, Mapping[str, Any]]
    examples: Examples | None

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
        """Fraction of samples that withstand PGD."""
        return None if self.pgd is None else float(self.pgd.mean())

    @property
    def ra_aa(self) -> float | None:
        """Fraction of samples that withstand AutoAttack."""
        return None if self.autoattack is None else float(self.autoattack.mean())

    def summary(self) -> dict[str, Any]:
        """Give the content of ``eval.json``."""
        accuracies = {"sa": self.sa, "ra_pgd": self.ra_pgd, "ra_aa": self.ra_aa}
        return {**accuracies, "n": self.n, "eps": self.eps, "seed": self.seed, "attacks": dict(self.settings)}


def write(evaluation: Evaluation, run_folder: Path, *, about: Mapping[str, Any] | None = None) -> None:
    """Write ``outcomes.npz`` and then ``eval.json`` into a run folder, each in one piece.

    Args:
        evaluation: What to write.
        run_folder: An existing folder.
        about: Further plain values for ``eval.json``, such as the checkpoint, the split and the versions.

    Raises:
        UserError: When a file cannot be written; what it held before is unchanged.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"clean": evaluation.clean}
    for name in ("pgd", "autoattack"):
        outcomes = getattr(evaluation, name)
        if outcomes is not None:
            arrays[name] = outcomes
    if evaluation.examples is not None:
        arrays |= {f"example_{name}": array for name, array in vars(evaluation.examples).items()}
    archive = io.BytesIO()
    np.savez_compressed(archive, allow_pickle=False, **arrays)
    replace_file(run_folder / OUTCOMES_FILE, archive.getvalue())
    # Last, so that a folder with eval.json has everything.
    content = json.dumps({**evaluation.summary(), **(about or {})}, indent=2, allow_nan=False) + "\n"
    replace_file(run_folder / EVAL_FILE, content.encode())


def read(run_folder: Path) -> Evaluation:
    """Read back what `write` wrote.

    Raises:
        UserError: When the folder has no evaluation, or its files are damaged or do not belong together.
    """
    try:
        summary = json.loads((run_folder / EVAL_FILE).read_text(encoding="utf-8"))
        with np.load(run_folder / OUTCOMES_FILE, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        pictures = {name.removeprefix("example_"): arrays[name] for name in arrays if name.startswith("example_")}
        evaluation = Evaluation(
            eps=summary["eps"],
            seed=summary["seed"],
            clean=arrays["clean"],
            pgd=arrays.get("pgd"),
            autoattack=arrays.get("autoattack"),
            settings=summary["attacks"],
            examples=Examples(**pictures) if pictures else None,
        )
        accuracies = [summary[name] for name in ("sa", "ra_pgd", "ra_aa", "n")]
    except FileNotFoundError as error:
        raise UserError(f"`{run_folder}` has not been evaluated: `adv-train eval {run_folder}` does it.") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"The evaluation in `{run_folder}` is damaged ({error}): run `adv-train eval` again."
        ) from error
    if accuracies != [evaluation.sa, evaluation.ra_pgd, evaluation.ra_aa, evaluation.n]:
        raise UserError(
            f"`{EVAL_FILE}` and `{OUTCOMES_FILE}` in `{run_folder}` do not belong together: run `adv-train eval` again."
        )
    return evaluation

"""Records of the first format, from the time when a run had a single record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from adv_train.archives import load_arrays
from adv_train.errors import UserError
from adv_train.evaluation.packed import UNREADABLE, examples_in, flags
from adv_train.evaluation.record import Evaluation, Outcome
from adv_train.threat import Threat

EVAL_FILE: Final = "eval.json"
OUTCOMES_FILE: Final = "outcomes.npz"


def read_first_format(run_folder: Path, *, listed: bool) -> Evaluation | None:
    """Read the record of the first format, in ``eval.json`` and ``outcomes.npz``; None if the folder has none.

    Args:
        run_folder: The folder of the run.
        listed: Whether it has records of the later format, so that ``eval.json`` may be a list of them.

    Raises:
        UserError: If the files are damaged or do not belong together.
    """
    if not (run_folder / EVAL_FILE).is_file():
        return None
    try:
        try:
            summary = json.loads((run_folder / EVAL_FILE).read_text(encoding="utf-8"))
        except ValueError:
            if listed:  # Only the list is damaged, which is not read.
                return None
            raise
        if "format" in summary:
            return None
        arrays = load_arrays(run_folder / OUTCOMES_FILE)
        clean = flags(arrays, "clean")
        attacks: dict[str, Outcome] = {
            name: Outcome(flags(arrays, name, len(clean)), None, dict(summary["attacks"][name]))
            for name in ("pgd", "autoattack")
            if name in arrays
        }
        figures = ("sa", "ra_pgd", "ra_aa", "n", "eps", "seed", "attacks")
        record = Evaluation(
            threat=Threat("linf", summary["eps"]),
            seed=summary["seed"],
            clean=clean,
            attacks=attacks,
            examples=examples_in(arrays),
            about={key: value for key, value in summary.items() if key not in figures},
        )
        accuracies = [summary[name] for name in figures[:4]]
    except UNREADABLE as error:
        raise UserError(
            f"The evaluation in `{run_folder}` is damaged ({error}): delete its {EVAL_FILE} and evaluate again."
        ) from error
    if accuracies != [record.sa, record.ra_pgd, record.ra_aa, record.n]:
        raise UserError(
            f"`{EVAL_FILE}` and `{OUTCOMES_FILE}` in `{run_folder}` do not belong together: "
            f"delete {EVAL_FILE} and evaluate again."
        )
    return record

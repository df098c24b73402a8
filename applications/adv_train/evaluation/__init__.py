"""The record of a judged model: what became of each sample, in memory and on disk."""

from __future__ import annotations

from adv_train.evaluation.alarms import collapse, overfitted, overfitting, sound
from adv_train.evaluation.files import EVAL_FILE, OUTCOMES_FILE, RECORDS_FOLDER, headline, read, read_all, write
from adv_train.evaluation.record import Evaluation, Examples, Outcome

__all__ = [
    "EVAL_FILE",
    "OUTCOMES_FILE",
    "RECORDS_FOLDER",
    "Evaluation",
    "Examples",
    "Outcome",
    "collapse",
    "headline",
    "overfitted",
    "overfitting",
    "read",
    "read_all",
    "sound",
    "write",
]

"""The record of an evaluation, with the outcome for each sample, in memory and on disk."""

from __future__ import annotations

from adv_train.evaluation.alarms import collapse, overfitted, overfitted_epoch, overfitting, sound, stayed
from adv_train.evaluation.chance import chance_margin
from adv_train.evaluation.files import RECORDS_FOLDER, headline, read, read_all, record_name, records_of, write
from adv_train.evaluation.first_format import EVAL_FILE, OUTCOMES_FILE
from adv_train.evaluation.images import check_image_file, holds_images_of, write_images
from adv_train.evaluation.intervals import wilson
from adv_train.evaluation.record import Evaluation, Examples, Outcome
from adv_train.evaluation.unfinished import Finished, Unfinished

__all__ = [
    "EVAL_FILE",
    "OUTCOMES_FILE",
    "RECORDS_FOLDER",
    "Evaluation",
    "Examples",
    "Finished",
    "Outcome",
    "Unfinished",
    "chance_margin",
    "check_image_file",
    "collapse",
    "headline",
    "holds_images_of",
    "overfitted",
    "overfitted_epoch",
    "overfitting",
    "read",
    "read_all",
    "record_name",
    "records_of",
    "sound",
    "stayed",
    "wilson",
    "write",
    "write_images",
]

"""One run of a comparison: a run folder, and the evaluations of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adv_train import evaluation
from adv_train.attacks import ATTACKS, Attack, Transfer
from adv_train.config import RunConfig
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation
from adv_train.judged_weights import of_weights, weights_in
from adv_train.records import RunFolder, best_record


@dataclass(frozen=True)
class Judgement:
    """How to evaluate a checkpoint, with seed 0.

    Attributes:
        checkpoint: ``"best"`` or ``"last"``.
        attacks: The attacks to run, at most one of each kind.
        images: Number of test images.
    """

    checkpoint: str
    attacks: tuple[Attack, ...]
    images: int

    def command(self, config: RunConfig, out: Path) -> list[str]:
        """Return the words after ``adv-train`` of the command that evaluates a run in this way."""
        # An option that is not written has its default here and in `adv-train eval`: those of PGD are equal.
        attacks = ",".join(map(ATTACKS.written, self.attacks))
        words = ["eval", str(out), "--checkpoint", self.checkpoint, "--limit", str(self.images)]
        return [*words, "--attacks", attacks, "--device", config.compute.device, "--progress"]

    def is_in(self, record: Evaluation, epoch: int, config: RunConfig) -> bool:
        """Return whether a record is such an evaluation of the weights of an epoch; `of_weights` compares the weights.

        The file name of the checkpoint does not count: `best.pt` and `last.pt` may hold the same epoch.
        """
        if (record.about.get("epoch"), record.n, record.seed, record.threat) != (epoch, self.images, 0, config.threat):
            return False
        for attack in self.attacks:
            found = record.attacks.get(ATTACKS.name_of(attack))
            if found is None or not attack.defining(config.threat).items() <= found.settings.items():
                return False
            if isinstance(attack, Transfer) and _source_has_changed(attack, found.settings):
                return False
        return True


@dataclass(frozen=True)
class Cell:
    """A run to train and evaluate.

    Attributes:
        name: Name of the run.
        out: Its run folder.
        config: Its configuration.
        judgements: The evaluations of its checkpoints.
    """

    name: str
    out: Path
    config: RunConfig
    judgements: tuple[Judgement, ...]

    @property
    def run(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(self.out)

    def epochs_done(self) -> int:
        """Return the number of finished epochs.

        Raises:
            UserError: If its records are damaged.
        """
        return len(self.run.metrics())

    def is_trained(self) -> bool:
        """Return whether all epochs are finished; False if its records are damaged."""
        try:
            return self.epochs_done() == self.config.training.epochs
        except UserError:
            return False

    def evaluations(self) -> list[Evaluation | None]:
        """Return the record of each evaluation; None if there is no record or training has not finished."""
        if not self.is_trained():
            return [None] * len(self.judgements)
        metrics, select, run = self.run.metrics(), self.config.training.select, self.run
        weights = {"best": (best_record(select, metrics)["epoch"], run.best), "last": (len(metrics), run.last)}
        try:
            records = evaluation.read_all(self.out)
        except UserError:
            records = []

        def found(each: Judgement) -> Evaluation | None:
            epoch, file = weights[each.checkpoint]
            fitting = [record for record in records if each.is_in(record, epoch, self.config)]
            return next(iter(of_weights(fitting, file)), None)

        return [found(each) for each in self.judgements]

    def is_done(self) -> bool:
        """Return whether training and all evaluations are finished."""
        return None not in self.evaluations()

    def commands(self) -> Iterator[list[str]]:
        """Yield the words after ``adv-train`` of each command that remains to be run.

        The caller runs each command before it asks for the next. The folder must hold the configuration already.
        """
        name = self.config.model.name
        trusted = ["--trust", name] if ":" in name else []  # the user trusted it when starting the comparison
        if not self.is_trained():
            yield ["fit", "--out", str(self.out), "--progress", *trusted]
        for place, judgement in enumerate(self.judgements):
            if self.evaluations()[place] is None:
                yield [*judgement.command(self.config, self.out), *trusted]


def _source_has_changed(attack: Transfer, settings: Mapping[str, Any]) -> bool:
    """Return whether the source of a transfer attack has other weights than those that made the images of a record.

    False if the source can no longer be read: a record may outlive its source.
    """
    place = Path(str(attack.source))
    present = weights_in(RunFolder(place).best if place.is_dir() else place)
    return present is not None and present != settings.get("source_weights")

"""One run of a comparison: an ordinary run folder, and how its checkpoints are judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adv_train import evaluation
from adv_train.attacks import ATTACKS, PGD, Attack
from adv_train.config import RunConfig
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation
from adv_train.records import RunFolder, score


@dataclass(frozen=True)
class Judgement:
    """How a checkpoint is judged, with seed 0.

    Attributes:
        checkpoint: ``"best"`` or ``"last"``.
        attacks: Those to run, at most one of a kind.
        images: Number of test images.
    """

    checkpoint: str
    attacks: tuple[Attack, ...]
    images: int

    def command(self, config: RunConfig, out: Path) -> list[str]:
        """Return the words after ``adv-train`` that judge a run so."""
        words = ["eval", str(out), "--checkpoint", self.checkpoint, "--limit", str(self.images)]
        written = ("pgd" if isinstance(attack, PGD) else ATTACKS.written(attack) for attack in self.attacks)
        words += ["--attacks", ",".join(written), "--device", config.compute.device]
        for attack in self.attacks:
            if isinstance(attack, PGD):
                words += ["--pgd-steps", str(attack.steps), "--pgd-restarts", str(attack.restarts)]
        return [*words, "--progress"]

    def is_in(self, record: Evaluation, epoch: int, config: RunConfig) -> bool:
        """Whether a record judges the weights of an epoch so; `best.pt` and `last.pt` may be of the same epoch."""
        if (record.about.get("epoch"), record.n, record.seed, record.threat) != (epoch, self.images, 0, config.threat):
            return False
        for attack in self.attacks:
            found = record.attacks.get(ATTACKS.name_of(attack))
            if found is None or not attack.chosen().items() <= found.settings.items():
                return False
        return True


@dataclass(frozen=True)
class Cell:
    """A run to train and judge.

    Attributes:
        name: What to call it.
        out: Its run folder.
        config: What it trains.
        judgements: How it is judged.
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
        """Count the epochs that it has been trained for.

        Raises:
            UserError: When its records are damaged.
        """
        return len(self.run.metrics())

    def is_trained(self) -> bool:
        """Whether it is trained to the end, as intact records say."""
        try:
            return self.epochs_done() == self.config.training.epochs
        except UserError:
            return False

    def evaluations(self) -> list[Evaluation | None]:
        """Return the record of each judgement; None where it is missing, or the run is not trained to the end."""
        if not self.is_trained():
            return [None] * len(self.judgements)
        metrics, select = self.run.metrics(), self.config.training.select
        epochs = {"best": max(metrics, key=lambda line: score(select, line))["epoch"], "last": len(metrics)}
        try:
            records = evaluation.read_all(self.out)
        except UserError:
            records = []
        return [
            next((record for record in records if each.is_in(record, epochs[each.checkpoint], self.config)), None)
            for each in self.judgements
        ]

    def is_done(self) -> bool:
        """Whether it is trained and judged."""
        return None not in self.evaluations()

    def commands(self) -> Iterator[list[str]]:
        """Yield the words after ``adv-train`` of what is left to do when the ones before have been run.

        The folder holds the configuration already.
        """
        name = self.config.model.name
        trusted = ["--trust", name] if ":" in name else []  # the user has named it to the command that made this cell
        if not self.is_trained():
            yield ["fit", "--out", str(self.out), "--progress", *trusted]
        for place, judgement in enumerate(self.judgements):
            if self.evaluations()[place] is None:
                yield [*judgement.command(self.config, self.out), *trusted]

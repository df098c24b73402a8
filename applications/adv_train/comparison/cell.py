"""One run of a comparison: an ordinary run folder, and how its checkpoints are judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adv_train import evaluation
from adv_train.attacks import ATTACKS, PGD, Attack
from adv_train.config import RunConfig
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation
from adv_train.records import RunFolder


@dataclass(frozen=True)
class Judgement:
    """How a checkpoint is judged, with seed 0.

    Attributes:
        checkpoint: ``"best"`` or ``"last"``.
        attacks: Those to run, at most one of a kind; of options, those of PGD.
        images: Number of test images.
    """

    checkpoint: str
    attacks: tuple[Attack, ...]
    images: int

    def command(self, config: RunConfig, out: Path) -> list[str]:
        """Return the words after ``adv-train`` that judge a run so."""
        words = ["eval", str(out), "--checkpoint", self.checkpoint, "--limit", str(self.images)]
        words += ["--attacks", ",".join(map(ATTACKS.name_of, self.attacks)), "--device", config.compute.device]
        for attack in self.attacks:
            if isinstance(attack, PGD):
                words += ["--pgd-steps", str(attack.steps), "--pgd-restarts", str(attack.restarts)]
        return [*words, "--progress"]

    def made(self, record: Evaluation, epoch: int, config: RunConfig) -> bool:
        """Whether a record is of this judgement, on the checkpoint of an epoch."""
        about = (record.about.get("checkpoint"), record.about.get("epoch"), record.n, record.seed, record.threat)
        if about != (f"{self.checkpoint}.pt", epoch, self.images, 0, config.threat):
            return False
        for attack in self.attacks:
            found = record.attacks.get(ATTACKS.name_of(attack))
            chosen = {option: value for option, value in vars(attack).items() if value is not None}
            if found is None or not chosen.items() <= found.settings.items():
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

    def evaluations(self) -> list[Evaluation | None]:
        """Return the record of each judgement; None where it is missing, or the run is not trained to the end."""
        try:
            last, best = self.epochs_done(), self.run.best_epoch()
            records = evaluation.read_all(self.out)
        except UserError:
            return [None] * len(self.judgements)
        if last != self.config.training.epochs or best is None:
            return [None] * len(self.judgements)
        return [
            next((r for r in records if j.made(r, best if j.checkpoint == "best" else last, self.config)), None)
            for j in self.judgements
        ]

    def is_done(self) -> bool:
        """Whether it is trained and judged."""
        return None not in self.evaluations()

    def commands(self) -> list[list[str]]:
        """Return the words after ``adv-train`` that do what is left to do; the folder holds the configuration."""
        left = [j for j, found in zip(self.judgements, self.evaluations(), strict=True) if found is None]
        fit = ["fit", "--out", str(self.out), "--progress"]
        return [fit, *(judgement.command(self.config, self.out) for judgement in left)] if left else []

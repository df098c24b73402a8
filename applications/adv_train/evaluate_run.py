"""Judging what is in a run folder, and gathering what was measured of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from adv_train import bench, data, evaluation
from adv_train.attacks import PGDSettings
from adv_train.data.stratified import stratified_head
from adv_train.devices import find_device
from adv_train.errors import UserError
from adv_train.evaluate import evaluate_model
from adv_train.evaluation import Evaluation
from adv_train.loading import build_model, load_checkpoint
from adv_train.records import RunFolder
from adv_train.report import RunSummary
from adv_train.threat import Threat
from adv_train.train import create_method

_CLASSES_FOR_AUTOATTACK = 4


def evaluate_run(
    path: Path,
    *,
    which: str = "best",
    pgd: PGDSettings | None = PGDSettings(),  # noqa: B008  # Frozen, so sharing the default is safe.
    autoattack: bool = True,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 512,
    device: str | None = None,
    data_root: str | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Judge a model of a run on the test split of its data and write ``eval.json`` and ``outcomes.npz``.

    Args:
        path: The run folder.
        which: Which checkpoint, ``"best"`` or ``"last"``.
        pgd: How hard PGD tries; ``None`` leaves it out.
        autoattack: Run standard AutoAttack, the costly part.
        limit: Judge only so many test images, of all classes in proportion.
        seed: Of the attacks.
        batch_size: Images in a forward pass.
        device: Where to judge; by default the fastest there is.
        data_root: Folder of the data sets; by default the one that the run was trained from.
        progress: Show bars; ``None`` shows them on a terminal only.

    Raises:
        UserError: When the run, its data or an argument cannot be used.
    """
    run = RunFolder(path)
    saved = load_checkpoint(run, which)
    config = saved.config
    if autoattack and saved.model_arguments["classes"] < _CLASSES_FOR_AUTOATTACK:
        raise UserError(
            f"AutoAttack compares {_CLASSES_FOR_AUTOATTACK} logits, but the model has "
            f"{saved.model_arguments['classes']} classes: add --no-autoattack."
        )
    where = find_device(device or "auto")
    test = data.load(config.data, root=data_root or config.data_root, limit=config.train_limit).test
    if limit is not None and limit < len(test):
        test = test.subset(stratified_head(test.labels, limit))
    test = test.to(where)
    outcome = evaluate_model(
        build_model(saved).to(where),
        test.images,
        test.labels,
        eps=config.eps,
        pgd=pgd,
        autoattack=autoattack,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    about = {
        "checkpoint": run.best.name if which == "best" else run.last.name,
        "epoch": saved.epoch,
        "method": config.method,
        "data": config.data,
        "split": "test",
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "blo": _own_version(),
    }
    evaluation.write(outcome, path, about=about)
    return outcome


def summarise(path: Path, name: str | None = None) -> RunSummary:
    """Gather the configuration, records, evaluation and cost of a run for tables and reports.

    Args:
        path: A run folder that was evaluated.
        name: What to call the run; by default its method.

    Raises:
        UserError: When the folder holds no run or no evaluation.
    """
    run = RunFolder(path)
    config = run.config()
    outcome = evaluation.read(path)
    metrics = run.metrics()
    seconds = [line["train_seconds"] for line in run.timing()]
    shares = [line["implicit_share"] for line in metrics if line["implicit_share"]]
    return RunSummary(
        name=name or config.method,
        config=config.to_mapping(),
        evaluation=outcome.summary(),
        metrics=metrics,
        seconds_per_epoch=sum(seconds) / len(seconds) if seconds else None,
        forward_equivalents=_forwards(run),
        implicit_share=sum(shares) / len(shares) if shares else None,
        examples=outcome.examples,
    )


def _forwards(run: RunFolder) -> float:
    """Count the cost of a step on the run's own network; two images suffice, since all costs grow with the batch."""
    saved = load_checkpoint(run)
    arguments, config = saved.model_arguments, saved.config
    side = arguments["image_size"]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, arguments["channels"], side, side, generator=generator)
    y = torch.zeros(2, dtype=torch.int64)
    method = create_method(config)
    batch = data.Batch(x, y, torch.arange(2))
    return bench.forward_equivalents(method, build_model(saved).train(), batch, Threat("linf", config.eps))


def _own_version() -> str:
    try:
        return version("blo")
    except PackageNotFoundError:  # used from a source tree that is not installed
        return "not installed"

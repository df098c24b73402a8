"""What two ranks do in the tests, and one process likewise: they train by every method, resume, judge and fail."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed

import adv_train
from adv_train import checkpoint, data, train, trainer, training_step
from adv_train.attacks import PGD
from adv_train.attacks.transfer import Source, Transfer
from adv_train.config import RunConfig, resolve
from adv_train.errors import Diverged, UserError
from adv_train.evaluate_run import evaluate_run
from adv_train.loading import load_data, load_model
from adv_train.ranks import current
from adv_train.train import fit
from adv_train.trainer import Trainer

#: Batches of 31, 31 and 17: no two ranks have as many samples of one.
SMALL = {"data": "digits", "epochs": 2, "train_limit": 79, "batch_size": 31, "validation_steps": 1, "device": "cpu"}
#: Each method with what else a run may do, so that every option meets several ranks.
RUNS: dict[str, dict[str, Any]] = {
    "aaer": {"attack_loss": "dlr", "eps": 0.3, "penalty": 3, "follow_fall": True},
    "aaer-rs": {"attack_loss": "dlr", "eps": 0.3, "penalty": 3},
    "atas": {"augment": "flip-crop", "warmup_epochs": 1, "rollback": True},
    "beta": {},
    "elle": {"mixup": 0.4},
    "fast-at": {"augment": "flip-crop", "ema": 0.9, "clip": 0.1},
    "fast-at-ga": {"norm": "l2", "eps": 1.0},
    "fast-bat": {"weight_perturbation": 0.01},
    "fgsm-pgi": {"augment": "flip-crop", "reset_epochs": 1},
    "free-at": {"repeats": 2},
    "gat": {},
    "learned-n-fgsm": {"knots": 2},
    "liet": {},
    "mart": {},
    "multigrad": {"eps_warmup": 1},
    "n-fgsm": {"average_from": 1, "validation_images": 51},
    "nuat": {"start": "gaussian"},
    "pgd-at": {"norm": "l1", "eps": 2.0, "mixup": 0.4, "augment": "flip-crop"},
    "sora": {},
    "standard": {"optimizer": "adam", "momentum": None},
    "trades": {"steps": 2},
    "zerograd": {"weight_perturbation": 0.01},
}
NORMED = {"model": "preact-resnet-18", "base_width": 4, "epochs": 1}


def config(method: str, **values: Any) -> RunConfig:
    chosen = {"eps": 0.1, **SMALL, **RUNS[method], **values, "method": method}
    return resolve({key: value for key, value in chosen.items() if value is not None or key == "momentum"})


@contextmanager
def in_double_precision() -> Iterator[None]:
    """Images and weights in float64: else a gradient near zero has another sign for another order of a sum."""
    batches: Any = sys.modules["adv_train.data.batches"]
    original = batches.to_unit_range
    torch.set_default_dtype(torch.float64)
    for module in (batches, trainer):
        module.to_unit_range = lambda images: original(images).double()
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        for module in (batches, trainer):
            module.to_unit_range = original


def train_all(folder: Path) -> None:
    """Train by every method, with BatchNorm over all ranks, and with an epoch that is rolled back."""
    with in_double_precision():
        for method in RUNS:
            fit(config(method), folder / method, progress=False)
        for method in ("fast-at", "fast-bat"):
            normed = config(method, **NORMED, sync_batchnorm=True, train_limit=64, batch_size=32)
            fit(normed, folder / f"{method}-normed", progress=False)
        at_two = patch.object(train, "overfitted", lambda record, best: "so" if record["epoch"] == 2 else None)
        with at_two, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Epoch 2 overfitted")
            fit(config("fgsm-pgi", rollback=True, epochs=3), folder / "rolled-back", progress=False)


def go_on(folder: Path, method: str) -> None:
    """Train to the end what was trained by others for an epoch."""
    with in_double_precision():
        fit(config(method), folder, progress=False)


def judge(folder: Path) -> dict[str, Any]:
    """Judge a model, its images and verdicts."""
    model, images = load_model(folder), data.load("digits", root="").test.subset(torch.arange(41))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        source = Transfer(Source("another", load_model(folder.parent / "standard")), steps=3)
        chosen = [PGD(3, 2), "pgd-targeted(steps=2, targets=2)", source, "square(queries=5)", "apgd"]
        found = adv_train.evaluate(model, images, eps=0.02, attacks=chosen, examples=3, batch_size=8)
    told = {name: (outcome.robust, outcome.predicted) for name, outcome in found.attacks.items()}
    assert found.examples is not None
    settings = {name: outcome.settings for name, outcome in found.attacks.items()}
    return {"verdicts": told, "examples": found.examples.adversarial, "settings": settings, "clean": found.clean}


def judge_run(run: Path) -> None:
    """Judge a run into its folder; the second time it is judged already."""
    for _ in range(2):
        evaluate_run(run, attacks=[PGD(2, 1)], limit=41, device="cpu", save_images=run / "images.npz")


class Stopped(BaseException):
    """The end of a process, played inside this one."""


@contextmanager
def ending_at(step: int, how: BaseException | None) -> Iterator[None]:
    """End the rank at a step; None ends its process."""
    original, left = training_step.met, step

    def met(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            if how is None:
                os._exit(0)
            raise how
        return original(*arguments)

    training_step.met = met  # type: ignore[assignment]
    try:
        yield
    finally:
        training_step.met = original


def interrupt(folder: Path) -> None:
    """Stop in the second epoch, keep what there is for others, and go on; free-at has two steps a batch."""
    for method in ("fgsm-pgi", "free-at", "learned-n-fgsm", "fast-at"):
        run, step = folder / f"{method}-resumed", (8 if method == "free-at" else 5)
        with in_double_precision():
            try:
                with ending_at(step, Stopped()):
                    fit(config(method), run, progress=False)
            except Stopped:
                pass
            if current().first:
                assert checkpoint.load(run / "last.pt").epoch == 1
                shutil.copytree(run, folder / f"{method}-left")
            distributed.barrier()
            fit(config(method), run, progress=False)


def disagree(folder: Path) -> dict[str, Any]:
    """Train where the ranks measure different accuracies, and return the best epoch of this one."""
    measured = Trainer.validate

    def validate(self: Trainer) -> dict[str, float | None]:
        found = measured(self)
        return found if self.ranks.first else {**found, "val_sa": 0.0, "val_ra": float(self.lr > 0.01)}

    with patch.object(Trainer, "validate", validate):
        return fit(config("standard", epochs=3), folder, progress=False).best


def models(folder: Path) -> dict[str, Tensor]:
    """Train an epoch with BatchNorm of each rank's own, with an average; return all that is trained."""
    chosen = config("liet", **NORMED, ema=0.9)
    trained = Trainer(chosen, load_data(chosen, None), torch.device("cpu"), current())
    trained.train_epoch(0, lambda: None)
    state = trained.state
    assert state.average is not None
    parts = {"model": state.model.state_dict(), "average": state.average.state_dict(), "memory": state.memory}
    return {f"{part}.{name}": value for part, found in parts.items() for name, value in found.items()}


def error(*arguments: Any, **values: Any) -> tuple[str, str]:
    """Return the error that a run ends with."""
    try:
        fit(*arguments, progress=False, **values)
    except (UserError, Diverged) as found:
        return type(found).__name__, str(found)
    return "", ""


def work(rank: int, folder: str) -> None:
    """Do all of it as one of two ranks, and save what this rank saw."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    top = Path(folder)
    distributed.init_process_group(
        "gloo", init_method=f"file://{top}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    train_all(top / "two")
    interrupt(top / "two")
    seen: dict[str, Any] = {"judged": judge(top / "two" / "trades"), "models": models(top)}
    if current().first:
        shutil.copytree(top / "two" / "trades", top / "judged")
    distributed.barrier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        judge_run(top / "judged")
    seen["best"] = disagree(top / "disagreed")
    single = data.load("digits", root="").test.subset(torch.arange(1))
    seen["single"] = adv_train.evaluate(load_model(top / "two" / "trades"), single, eps=0.1, attacks=[PGD(2, 1)]).n
    seen["diverged"] = error(config("standard", lr=1e30, clip=None), top / "diverged")
    seen["small"] = error(config("standard", batch_size=3), top / "small")
    seen["compiled"] = error(config("standard", accelerate="compile"), top / "compiled")
    seen["unlike"] = error(config("standard", seed=rank), top / "unlike")
    torch.save(seen, top / f"seen-{rank}.pt")
    distributed.barrier()
    with ending_at(2 if rank else 10**9, None):
        seen["lost"] = error(config("fast-at"), top / "lost")
    torch.save(seen, top / f"seen-{rank}.pt")

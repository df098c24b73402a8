"""AutoAttack, run by its authors' code and checked by ours."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn
from tqdm import tqdm

from adv_train.attacks.judging import check_budget, check_samples, frozen, predict, progress_bar, suitable_threads
from adv_train.errors import UserError


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    batch_size: int = 512,
    progress: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """Run standard L-infinity AutoAttack: APGD-CE, targeted APGD-DLR, targeted FAB and Square.

    Source: Croce and Hein (ICML 2020), through the package `pyautoattack`; each part sees the samples that the
    earlier ones left. Only the verdict is ours: each returned image is checked against the budget and classified
    once more. Fewer than ten classes leave fewer than the standard nine target classes.

    What costs the time is thousands of small passes in sequence (on 360 digits: 1 % clean checks, 30 % APGD, 40 %
    FAB, 30 % Square), so the attack is made cheaper without being changed: large batches, constant parameters so
    that FAB's backward passes compute no gradient in the weights, and one thread for small models.

    Args:
        model: Maps images in [0, 1] to logits ``(batch, classes)``, with its normalisation inside.
        x: Images ``(N, C, H, W)`` in [0, 1], on the model's device. The attack itself works in float32.
        y: Labels ``(N,)``, int64.
        eps: Radius in units of images in [0, 1].
        seed: Of all random numbers of the attack; the global random state is left as it was.
        batch_size: Images in a forward pass. As in the original, random numbers depend on it.
        progress: Show a bar; ``None`` shows it on a terminal only.

    Returns:
        Whether each sample is robust, ``(N,)`` bool, and images like x: for a broken sample the one that broke
        it, for a robust one x itself.

    Warns:
        RuntimeWarning: What AutoAttack's own checks find, such as a randomised model or vanished gradients.

    Raises:
        UserError: When an argument is out of range or shape, or when the model has fewer than 4 classes, for
            which the targeted DLR loss is not defined.
        RuntimeError: When an image leaves the ball.
    """
    check_samples(x, y, eps)
    with frozen(model), suitable_threads(model, x):
        clean = predict(model, x, batch_size) == y
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        if classes < 4:
            raise UserError(
                f"AutoAttack's targeted loss compares four logits, but the model has {classes} classes. "
                "Judge it by PGD alone."
            )
        if eps == 0 or not clean.any():
            return clean, x.clone()

        def forward(z: Tensor) -> Tensor:
            bar.update()
            logits: Tensor = model(z.to(x.dtype))
            return logits.float()

        attack = AutoAttack(forward, eps=eps, seed=seed, device=x.device)
        targets = min(9, classes - 1)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
        passes = {name: math.ceil(int(clean.sum()) / batch_size) * count for name, count in _passes(targets).items()}
        bar = progress_bar("AutoAttack", sum(passes.values()), "pass", progress)
        with bar, _narrated(attack.logger, _bar_mover(bar, passes)), _undisturbed(x.device):
            found, _ = attack.run_standard_evaluation(x.float(), y, batch_size=batch_size)
        adversarial = found.to(x.dtype)
        check_budget(adversarial, x, eps)
        return clean & (predict(model, adversarial, batch_size) == y), adversarial


def _passes(targets: int) -> dict[str, int]:
    """Count the forward passes each part makes on a batch of which nothing breaks, in the order they run.

    It steers the progress bar only: 100 iterations of APGD and FAB (two passes each), 5000 queries of Square, and
    the passes that start and finish a part.
    """
    return {"apgd-ce": 103, "apgd-t": 2 + 102 * targets, "fab-t": 2 + 203 * targets, "square": 5004}


def _bar_mover(bar: tqdm[NoReturn], passes: dict[str, int]) -> Callable[[str], None]:
    """Make the listener that moves the bar to where a part begins, since samples that broke shorten the last one."""
    names = list(passes)

    def listen(message: str) -> None:
        name = message.removeprefix("running ")
        if name in passes:
            before = sum(passes[earlier] for earlier in names[: names.index(name)])
            bar.update(before - bar.n)
            bar.set_description(f"AutoAttack {name}")
        elif message.startswith("robust accuracy after"):
            bar.set_postfix_str(message.split(": ")[1].split(" ")[0] + " robust")

    return listen


class _Narrator(logging.Handler):
    """Passes plain messages to a listener and keeps each different warning."""

    def __init__(self, listener: Callable[[str], None]) -> None:
        super().__init__()
        self.listener = listener
        self.warnings: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.warnings[message] = None
        else:
            self.listener(message)


@contextmanager
def _narrated(logger: logging.Logger, listener: Callable[[str], None]) -> Iterator[None]:
    """Send the package's log to a listener instead of the terminal, and its warnings to `warnings`, each once."""
    narrator = _Narrator(listener)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(narrator)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(narrator)
        logger.setLevel(level)
        logger.propagate = propagate
    for message in narrator.warnings:
        warnings.warn(f"AutoAttack: {message}", RuntimeWarning, stacklevel=4)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Put back what the package sets for the whole process: the random state, and a debugger's trace function."""
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        sys.settrace(trace)

"""AutoAttack, run by its authors' code and checked by ours."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from adv_train.attacks.base import ATTACKS, Attack, Verdicts
from adv_train.attacks.judging import (
    Forward,
    adapted,
    check_budget,
    check_labels,
    check_samples,
    checked,
    frozen,
    full_resolution,
    predict,
    progress_bar,
    suitable_threads,
)
from adv_train.errors import UserError
from adv_train.threat import Norm, Threat

if TYPE_CHECKING:
    from pyautoattack import AutoAttack
    from tqdm import tqdm

LEAST_CLASSES = 4
"""Logits that the targeted DLR loss compares."""

_LEAST_SIDE = 5
"""Pixels that Square divides an image's height and width by, but for the maximum norm."""

_NORMS: Final = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@ATTACKS.register("autoattack")
@dataclass(frozen=True)
class StandardAutoAttack(Attack):
    """Standard AutoAttack: APGD-CE, APGD-T, FAB-T and Square (Croce and Hein, ICML 2020).

    The standard version, which has no options, through the package `pyautoattack`: each part sees the samples that
    the earlier ones left. Only the verdict is ours: each returned image is checked against the budget and classified
    once more. Fewer than ten classes leave fewer than the standard nine target classes. In l1 the standard version
    shrinks the ball of APGD from 3 eps and starts APGD-CE five times (Croce and Hein, ICML 2021).

    What costs the time is thousands of small passes in sequence (on 360 digits: 1 % clean checks, 30 % APGD, 40 %
    FAB, 30 % Square), so the attack is made cheaper without being changed: large batches, constant parameters so
    that FAB's backward passes compute no gradient in the weights, and one thread for small models.
    """

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int,
        batch_size: int = 512,
        progress: bool | None = False,
    ) -> Verdicts:
        """Attack every image, in float32; the global random state is left as it was.

        As in the original, random numbers depend on the batch size.

        Warns:
            RuntimeWarning: What AutoAttack's own checks find, such as a randomised model or vanished gradients.

        Raises:
            UserError: When an argument is out of range or shape, for other ranges than [0, 1], for images below 5 x 5
                pixels in l2 and l1, which Square cannot divide, or when the model has fewer than 4 classes, for which
                the targeted DLR loss is not defined.
            RuntimeError: When an image leaves the ball.
        """
        if (threat.low, threat.high) != (0, 1):
            raise UserError(f"AutoAttack attacks images in [0, 1] only, but the threat is {threat}. Leave it out.")
        check_samples(x, y, threat)
        if threat.norm != "linf" and min(x.shape[2:]) < _LEAST_SIDE:
            raise UserError(
                f"AutoAttack in {threat.norm} needs images of at least {_LEAST_SIDE} x {_LEAST_SIDE} pixels, but these "
                f"have {x.shape[2]} x {x.shape[3]}. Judge them by PGD alone."
            )
        norm = _NORMS[threat.norm]
        said = {"version": "standard", "norm": norm, "pyautoattack": version("pyautoattack")}
        settings = {**said, "batch_size": batch_size}
        given, x = x, full_resolution(x)
        with frozen(model), suitable_threads(model, x):
            shown = adapted(model, given)
            with torch.no_grad():
                classes = checked(shown(x[:1]), 1).shape[1]
            check_labels(y, classes)
            before = predict(shown, x, batch_size)
            clean = before == y
            if classes < LEAST_CLASSES:
                raise UserError(
                    f"AutoAttack's targeted loss compares four logits, but the model has {classes} classes. "
                    "Judge it by PGD alone."
                )
            if threat.eps == 0 or not clean.any():
                return Verdicts(clean, x.clone(), before, settings)
            found = _run(shown, x, y, threat.eps, norm, seed, batch_size, (int(clean.sum()), classes), progress)
            adversarial = found.to(x.dtype)
            check_budget(adversarial, x, threat)
            after = predict(shown, adversarial, batch_size)
            return Verdicts(clean & (after == y), adversarial, after, settings)


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    seed: int,
    batch_size: int = 512,
    progress: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """Run standard AutoAttack in [0, 1]; see `StandardAutoAttack` for what it does and raises.

    Returns:
        Whether each sample is robust, ``(N,)`` bool, and images like x: for a broken sample the one that broke
        it, for a robust one x itself.
    """
    threat = Threat(norm, eps)
    found = StandardAutoAttack()(model, x, y, threat, seed=seed, batch_size=batch_size, progress=progress)
    return found.robust, found.images


def _run(
    model: Forward,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: str,
    seed: int,
    batch_size: int,
    size: tuple[int, int],
    progress: bool | None,
) -> Tensor:
    """Run the package on all images; `size` is the number of correct ones and of classes."""
    from pyautoattack import AutoAttack  # Not at the top: `import adv_train` works without it.

    def forward(z: Tensor) -> Tensor:
        bar.update()
        logits = model(z.to(x.dtype))
        if z.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            logits = logits + 0 * z.flatten(1).sum(1, keepdim=True)  # Without a graph the gradient is zero.
        return logits.float()

    correct, classes = size
    attack = AutoAttack(forward, eps=eps, norm=norm, seed=seed, device=x.device)
    for part in (attack.apgd_targeted, attack.fab):
        part.n_target_classes = min(part.n_target_classes, classes - 1)
    passes = {name: math.ceil(correct / batch_size) * count for name, count in _passes(attack).items()}
    bar = progress_bar("AutoAttack", sum(passes.values()), "pass", progress)
    with bar, _narrated(attack.logger, _bar_mover(bar, passes)), _undisturbed(x.device):
        found: Tensor = attack.run_standard_evaluation(x.float(), y, batch_size=batch_size)[0]
    return found


def _passes(attack: AutoAttack) -> dict[str, int]:
    """Count the forward passes each part makes on a batch of which nothing breaks, in the order they run.

    It steers the progress bar only: 100 iterations of APGD and FAB (two passes each), 5000 queries of Square, and
    the passes that start and finish a part.
    """
    each = attack.apgd.n_iter + (3 if attack.apgd.use_largereps else 1)
    targets, others = attack.apgd_targeted.n_target_classes, attack.fab.n_target_classes
    return {
        "apgd-ce": 2 + each * attack.apgd.n_restarts,
        "apgd-t": 2 + (each + 1) * targets,
        "fab-t": 2 + 203 * others,
        "square": 5004,
    }


def _bar_mover(bar: tqdm[Any], passes: dict[str, int]) -> Callable[[str], None]:
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

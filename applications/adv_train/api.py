"""The Python interface: train a run, and compute the gradient that a method passes to the optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adv_train import data, methods, train
from adv_train.attacks.checks import check_labels, check_samples, checked
from adv_train.config import RunConfig, resolve
from adv_train.errors import UserError
from adv_train.methods.weights import trainable
from adv_train.threat import Norm, Threat


def fit(
    config: RunConfig | Path | str | None = None,
    *,
    out: Path | str,
    progress: bool | None = None,
    log_every: int | None = None,
    **changes: Any,
) -> train.FitResult:
    """Train a model into a run folder; if the folder holds an interrupted run of this configuration, resume it exactly.

    Args:
        config: Name of a preset, a YAML file (a `Path`, or a string that ends in `.yaml`), a configuration, or None.
        out: The run folder.
        progress: True shows a progress bar and False shows nothing. None shows a bar on a terminal or in a notebook,
            and a line for each epoch elsewhere.
        log_every: Also log loss, learning rate and images a second every so many steps, to RUN/steps.jsonl.
        **changes: Values that override `config`, by the names of the flags: `data="digits", method="fast-bat",
            eps=0.2`.

    Returns:
        The result; `.best` is the record of the epoch in `best.pt`. `load_model(out)` returns the model.

    Raises:
        UserError: If a name or value is invalid, or the folder holds another run. Nothing is overwritten.
        Diverged: If the loss or a weight becomes NaN or infinite. The last good checkpoint is kept.
    """
    if isinstance(config, RunConfig):
        chosen = config.changed(changes)
    elif isinstance(config, Path) or (config is not None and config.endswith((".yaml", ".yml"))):
        chosen = resolve(changes, file=Path(config))
    else:
        chosen = resolve(changes, preset=config)
    return train.fit(chosen, out, progress=progress, log_every=log_every)


def training_gradient(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    method: str,
    eps: float,
    norm: Norm = "linf",
    start: Tensor | str | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> methods.Step:
    """Return the gradient that a method would pass to the optimiser for one batch.

    The function does not change the mode of the model: call `model.train()` first for the gradient of training. In
    train mode, BatchNorm updates its running statistics. Parameters and their `.grad` do not change.

    Args:
        model: Takes images in [0, 1] and returns logits.
        x: Images in [0, 1], shape `(batch, channels, height, width)`.
        y: Labels, shape `(batch,)`.
        method: A name of `adv-train list methods`.
        eps: Radius of the attack in the norm, such as `8 / 255`; in linf, the largest change of a pixel.
        norm: `"linf"`, `"l2"` or `"l1"`.
        start: Start of the attack: a tensor of x's shape, which is used unchanged, or a value of the method's option
            `start`. None uses the method's default.
        generator: Source of randomness, on x's device.
        **options: Options of the method, such as `step`, `curvature` or `ig_weight`.

    Returns:
        `step.grads`, by the name of each parameter that requires grad; `step.delta`; `step.loss`;
        `step.implicit_share`.

    Raises:
        UserError: If the method is unknown, lacks an option or is not defined for the threat; if `start` has another
            shape or dtype than x, or is not finite; if images are outside [0, 1] or differ in dtype from the
            parameters; if the model does not return logits, or a label is not one of its classes; if `eps` reaches
            every image; if the model has no trainable parameters or is wrapped for data parallelism.
    """
    threat = Threat(norm, eps)
    check_samples(x, y, threat)
    params = trainable(model)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(f"`model` is wrapped in {type(model).__name__}: pass its `.module`.")
    if not params:
        raise UserError("No parameter of `model` requires grad, so there is nothing to train.")
    other = next((name for name, value in params.items() if value.dtype != x.dtype), None)
    if other is not None:
        raise UserError(f"The images are {x.dtype}, but the parameter `{other}` is {params[other].dtype}: convert one.")
    if isinstance(start, Tensor):
        if (start.shape, start.dtype) != (x.shape, x.dtype):
            wanted, found = (f"{value.dtype} of shape {tuple(value.shape)}" for value in (x, start))
            raise UserError(f"`start` must have the dtype and the shape of x, {wanted}, but is {found}.")
        if not bool(start.isfinite().all()):
            raise UserError("`start` must be finite, but contains NaN or infinity.")
    elif start is not None:
        options["start"], start = start, None
    chosen = methods.METHODS.create(method, **options)
    chosen.check_threat(threat)
    batch = data.Batch(x, y, torch.arange(len(x), device=x.device))
    checks = model.register_forward_hook(
        lambda _, given, logits: check_labels(y, checked(logits, len(given[0])).shape[1])
    )
    try:
        return chosen(model, params, batch, threat, start=start, generator=generator)
    finally:
        checks.remove()

"""The Python surface: train a run, and look at the gradient that a method hands to the optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adv_train import data, methods, train
from adv_train.attacks.checks import check_samples
from adv_train.config import RunConfig, resolve
from adv_train.errors import UserError
from adv_train.threat import Norm, Threat


def fit(
    config: RunConfig | Path | str | None = None,
    *,
    out: Path | str,
    progress: bool | None = None,
    log_every: int | None = None,
    **changes: Any,
) -> train.FitResult:
    """Train a model into a run folder; a folder with part of the same run is continued exactly.

    Args:
        config: A preset's name, a YAML file (a `Path`, or text that ends in `.yaml`), a configuration, or None.
        out: The run folder.
        progress: True shows a bar, False nothing; None a bar on a terminal or in a notebook, else a line an epoch.
        log_every: Also log loss, lr and images a second of each so many steps, into RUN/steps.jsonl.
        **changes: Values that win over it, by the names of the flags: `data="digits", method="fast-bat", eps=0.2`.

    Returns:
        `.best` is the record of the epoch in `best.pt`; `load_model(out)` gives the model.

    Raises:
        UserError: when a name or value is wrong, or the folder holds another run. Nothing is overwritten.
        Diverged: when the loss or a weight is no longer finite. The last good checkpoint is kept.
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
    """Return what a method would hand to the optimiser for one batch.

    The model is used in the mode it is in: call `model.train()` first for the gradient of training. Train-mode
    BatchNorm updates its running statistics as it does in training. Parameters and their `.grad` are left alone.

    Args:
        model: takes images in [0, 1] and returns logits.
        x: images in [0, 1], shape `(batch, channels, height, width)`.
        y: labels, shape `(batch,)`.
        method: a name from `adv-train list`.
        eps: budget of the attack in the norm; `8 / 255`, say, the largest change of a pixel in linf.
        norm: `"linf"`, `"l2"` or `"l1"`.
        start: where the attack starts: a tensor of x's shape, used as given, or the method's option of that name;
            None draws the method's default.
        generator: source of randomness, on x's device.
        **options: the method's options, such as `step`, `curvature` or `ig_weight`.

    Returns:
        `step.grads`, by the name of each parameter that requires grad; `step.delta`; `step.loss`;
        `step.implicit_share`.

    Raises:
        UserError: for an unknown method, an option it lacks, a norm it is not defined for, a start that does not fit,
            images outside [0, 1] or of another dtype than the parameters, labels that are no classes, a budget that
            reaches every image, a model without trainable parameters or wrapped for data parallelism.
    """
    threat = Threat(norm, eps)
    check_samples(x, y, threat)
    params: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(f"`model` is wrapped in {type(model).__name__}: pass its `.module`.")
    if not params:
        raise UserError("No parameter of `model` requires grad, so there is nothing to train.")
    other = next((name for name, value in params.items() if value.dtype != x.dtype), None)
    if other is not None:
        raise UserError(f"The images are {x.dtype}, but the parameter `{other}` is {params[other].dtype}: convert one.")
    if isinstance(start, str):
        options["start"], start = start, None
    if start is not None and start.shape != x.shape:
        raise UserError(f"`start` must have the shape of x, {tuple(x.shape)}, but has {tuple(start.shape)}.")
    chosen = methods.METHODS.create(method, **options)
    chosen.check_norm(norm)
    batch = data.Batch(x, y, torch.arange(len(x), device=x.device))
    return chosen(model, params, batch, threat, start=start, generator=generator)

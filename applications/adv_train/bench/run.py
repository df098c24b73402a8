"""The benchmark: the cost of each method, counted in forward passes and timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adv_train import accelerate as faster
from adv_train import data, methods, models
from adv_train.bench.accelerated import prepared
from adv_train.bench.by_hand import STEPS
from adv_train.bench.count import forward_equivalents
from adv_train.bench.epoch import Epoch, around_a_gradient
from adv_train.bench.timing import interleaved, ratio
from adv_train.methods import Moment, Sizes
from adv_train.methods.weights import trainable
from adv_train.precision import computed_in
from adv_train.threat import Threat

#: Variants to measure besides every method with its defaults: the name to print, the method, and its options.
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fast-bat, no IG", "fast-bat", {"ig_weight": 0.0}),
    ("fast-bat, shifted", "fast-bat", {"implicit": "shifted"}),
    ("fast-bat, shifted, 1 step", "fast-bat", {"implicit": "shifted", "steps": 1}),
)


def cases() -> list[tuple[str, str, dict[str, Any]]]:
    """Return the cases to measure: standard training first, because the others are compared with it."""
    names = ["standard", *(name for name in methods.METHODS.names() if name != "standard")]
    return [*((name, name, {}) for name in names), *VARIANTS]


@dataclass(frozen=True)
class Row:
    """The cost of one method.

    Attributes:
        name: Name to print.
        forwards: Cost of a step in forward passes: the ratio of their floating-point operations.
        milliseconds: Median time of the gradient of a step.
        images_per_second: Images of a batch over this time.
        over_standard: Median ratio to the time of a step of standard training in the same round.
        over_by_hand: Median ratio to the time of the same step in one hand-written function; None for methods
            without one.
        peak_mib: Peak memory of the eager step on a CUDA device in MiB, also if the accelerated step is timed too:
            a replayed graph does not ask the allocator, which does the counting. None on other devices.
        over_eager: Median ratio of the accelerated to the eager step in the same round; None without acceleration.
        prepare_seconds: Seconds for capture or compilation; None without acceleration.
        replays: Number of steps on one batch; None in older records, like the fields below.
        epoch_seconds: Estimated seconds of an epoch of eager steps without validation: gradients and updates of the
            weights, without loading the images.
        validation_seconds: Estimated seconds of one validation; None if it is left out.
    """

    name: str
    forwards: float
    milliseconds: float
    images_per_second: float
    over_standard: float
    over_by_hand: float | None
    peak_mib: float | None
    over_eager: float | None = None
    prepare_seconds: float | None = None
    replays: int | None = None
    epoch_seconds: float | None = None
    validation_seconds: float | None = None


def run(
    *,
    model_name: str = "preact-resnet-18",
    image_size: int = 32,
    batch_size: int = 8,
    eps: float = 8 / 255,
    repeats: int = 10,
    device: torch.device,
    precision: str = "fp32",
    channels_last: bool = False,
    accelerate: str = "off",
    only: Sequence[str] | None = None,
    epoch: Epoch = Epoch(),  # noqa: B008  # frozen, so sharing the default is safe
    progress: bool = True,
) -> list[Row]:
    """Measure every method on random images.

    A method with a memory is timed in the middle of a run: it reads its start from the memory and writes the memory.
    The others start from the same perturbation as the hand-written steps.

    Args:
        model_name: A name from `adv-train list models`.
        image_size: Side of the random images in pixels.
        batch_size: Number of images in a step.
        eps: Radius of the attack in linf.
        repeats: Number of timed rounds; in each, every method and every hand-written step runs once.
        device: The device that computes.
        precision: One of `adv_train.precision.PRECISIONS`.
        channels_last: Use the channels-last memory layout for weights and images.
        accelerate: `graph` or `compile` also measures each step with this acceleration; `off` does not.
        only: Names of the methods to measure besides standard training; None measures all.
        epoch: The epoch whose seconds are estimated.
        progress: Show a bar on stderr.
    """
    generator = torch.Generator().manual_seed(0)
    model = models.create(
        model_name, channels=3, classes=10, image_size=image_size, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout).train()
    x = torch.rand(batch_size, 3, image_size, image_size, generator=generator).to(device, memory_format=layout)
    y = torch.randint(10, (batch_size,), generator=generator).to(device)
    start = (eps * (2 * torch.rand(x.shape, generator=generator) - 1)).to(device)

    chosen = [case for case in cases() if only is None or case[1] in ("standard", *only)]
    built = [methods.METHODS.create(method, **options) for _, method, options in chosen]
    threat = Threat("linf", eps)
    batch = data.Batch(x, y, torch.arange(len(x), device=device))
    steps = [_step(method, model, batch, threat, start) for method in built]
    titles = [title for title, _, _ in chosen if title in STEPS]
    hand = {title: _hand(title, model, x, y, start, eps) for title in titles}
    with computed_in(precision, device):
        view = faster.compiled(model) if accelerate == "compile" else model
        fast = {
            at: prepared(accelerate, _step(method, view, batch, threat, start), device)
            for at, method in enumerate(built)
            if accelerate == "graph" or (accelerate == "compile" and method.differentiates_once)
        }
        every = [*steps, *hand.values(), *(step for step, _ in fast.values()), *around_a_gradient(model, x)]
        # The steps of one method stand side by side.
        twins = [at for at, (title, _, _) in enumerate(chosen) if title in hand]
        place = [*range(len(steps)), *twins, *fast, len(steps), len(steps)]
        order = sorted(range(len(every)), key=place.__getitem__)
        timed = interleaved([every[at] for at in order], repeats=repeats, device=device, progress=progress)
        *seconds, updates, forwards = (taken for _, taken in sorted(zip(order, timed, strict=True)))
    del every  # with the copy of the model, which no step needs
    by_hand = dict(zip(hand, seconds[len(steps) :], strict=False))
    over_eager = {at: ratio(s, seconds[at]) for at, s in zip(fast, seconds[len(steps) + len(hand) :], strict=True)}
    update, forward = statistics.median(updates), statistics.median(forwards) / batch_size

    rows = []
    for at, ((name, _, _), method, step, taken) in enumerate(zip(chosen, built, steps, seconds, strict=False)):
        median = statistics.median(taken)
        rows.append(
            Row(
                name=name,
                forwards=forward_equivalents(method, model, batch, threat),
                milliseconds=1e3 * median,
                images_per_second=batch_size / median,
                over_standard=ratio(taken, seconds[0]),
                over_by_hand=ratio(taken, by_hand[name]) if name in by_hand else None,
                peak_mib=_peak(step, device, precision),
                over_eager=over_eager.get(at),
                prepare_seconds=fast[at][1] if at in fast else None,
                replays=method.replays(),
                epoch_seconds=epoch.seconds(median + update, batch_size, method.replays()),
                validation_seconds=None if epoch.validation is None else epoch.validation * forward,
            )
        )
    return rows


def _step(
    method: methods.Method, model: nn.Module, batch: data.Batch, threat: Threat, start: Tensor
) -> Callable[[], object]:
    params = trainable(model)
    # The middle of a run: the pattern of a class, the weight of a penalty and the like depend on the position.
    moment = Moment(*(torch.tensor(number, device=batch.x.device) for number in (3, 100, 1)))
    memory = method.remember(model, Sizes(batch.x.shape, 10, len(batch.x)))
    # Methods with a memory mostly start from it: reading the memory is a part of the step.
    given = None if memory else start
    return lambda: method(model, params, batch, threat, moment=moment, state=memory, start=given)


def _hand(name: str, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> Callable[[], object]:
    return lambda: STEPS[name](model, x, y, start, eps)


def _peak(step: Callable[[], object], device: torch.device, precision: str) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    with computed_in(precision, device):
        step()
    return torch.cuda.max_memory_allocated(device) / 2**20

"""One training step of a method on images drawn on the CPU: the same data on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adv_train import accelerate, data, methods, models
from adv_train.bench.by_hand import STEPS
from adv_train.bench.run import cases
from adv_train.methods import Moment, Sizes
from adv_train.precision import computed_in
from adv_train.threat import Threat
from benchmarks.gpu.draws import DrawnOnCPU

EPS = 8 / 255
#: Method and options by title. The title of an added method is its name.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{title: (method, options) for title, method, options in cases()},
    "fast-bat, reversed IG": ("fast-bat", {"ig_weight": -1.0}),
}


def prepared(
    model: str,
    title: str,
    device: torch.device,
    *,
    batch: int,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    by_hand: bool = False,
    compiled: bool = False,
) -> Callable[[], dict[str, Tensor]]:
    """Return a function that takes a training step and returns its gradients by parameter name.

    Everything that changes from step to step in a run is a tensor, which a captured step requires. Random numbers
    come from the default generator, which CUDA graphs support.

    Args:
        model: a name from `adv-train list`.
        title: one of `METHODS`; with `by_hand` one of `adv_train.bench.by_hand.STEPS`.
        device: device of the step.
        batch: number of images.
        dtype: dtype of weights and images.
        channels_last: whether both are kept in that memory layout.
        by_hand: whether to return the hand-written step instead of the library's.
        compiled: whether to compile the forward pass, for a method that differentiates it once.
    """
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    described: dict[str, Any] = {"channels": 3, "classes": 10, "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    network = models.create(model, **described, seed=0).to(device, dtype).to(memory_format=layout).train()
    drawn = torch.rand(2, batch, 3, 32, 32, generator=generator, dtype=torch.float64)
    x = drawn[0].to(device, dtype, memory_format=layout)
    y = torch.randint(10, (batch,), generator=generator).to(device)
    start = (EPS * (2 * drawn[1] - 1)).to(device, dtype).clamp(-x, 1 - x)
    if by_hand:
        return lambda: STEPS[title](network, x, y, start, EPS)
    method, options = METHODS[title]
    chosen = methods.METHODS.create(method, **options)
    params: dict[str, Tensor] = dict(network.named_parameters())
    view = accelerate.compiled(network) if compiled else network
    images, threat = data.Batch(x, y, torch.arange(batch, device=device)), Threat("linf", EPS)
    moment = Moment(*(torch.tensor(n, device=device) for n in (3, 100, 1)))
    memory = chosen.remember(network, Sizes(x.shape, 10, batch))
    return lambda: chosen(view, params, images, threat, moment=moment, state=memory, start=start).grads


def gradient(model: str, title: str, device: torch.device, dtype: torch.dtype, precision: str) -> Tensor:
    """Return the gradient of one step on 16 images, flattened, in double precision on the CPU."""
    step = prepared(model, title, device, batch=16, dtype=dtype)
    with computed_in(precision, device), DrawnOnCPU(seed=1):
        grads = step()
    return torch.cat([grad.detach().cpu().double().flatten() for grad in grads.values()])

"""A deep equilibrium layer on digits, z = tanh(W z + U x), against a hand-written loop.

The read-out is linear, and the loss the cross-entropy of a batch. Each image is a problem of its own.
Source: Bai, Kolter and Koltun, NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import blo
from benchmarks.against._pairs import Pair, compare
from benchmarks.answers._digits import digits
from benchmarks.registry import Outcome, Setting, benchmark

#: Tolerances of blo's default solver and linear solver, by dtype: the hand-written loops stop there too.
_TOL = {torch.float64: (1e-11, 1e-10), torch.float32: (1e-5, 1e-5)}


@dataclass(frozen=True, eq=False)
class _Layer:
    """Images of shape `(lanes, 65)`, labels, and the parameters W (n, n), U (n, 65) and the read-out (n, 10)."""

    x: Tensor
    labels: Tensor
    theta: dict[str, Tensor]

    def cell(self, theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return torch.tanh(z @ theta["w"].T + self.x @ theta["u"].T)

    def loss(self, theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return cross_entropy(z @ theta["r"], self.labels)

    @property
    def z0(self) -> Tensor:
        return self.x.new_zeros(len(self.x), len(self.theta["w"]))


@benchmark("deq", "hypergradient of a deep equilibrium layer of 256 units, on 128 digits")
def run(setting: Setting) -> Outcome:
    """Race blo's defaults against plain iteration of the layer and of its adjoint, to the same tolerances."""
    lanes, size = (4, 8) if setting.quick else (128, 256)
    layer = _draw(setting, lanes, size)
    tolerances = _TOL[setting.dtype]
    pair = Pair(
        f"{lanes} digits, {size} units",
        _ours(layer),
        lambda: _by_hand(layer, *tolerances),
        limit=1.3,
        data=(layer.theta["w"],),
    )
    table, goals = compare("blo's defaults over a hand-written loop", [pair], setting)
    return Outcome([table], goals)


def _draw(setting: Setting, lanes: int, size: int) -> _Layer:
    """Draw a layer with |W| = 0.9, so that each image has one equilibrium."""
    (batch,) = digits((lanes,), setting.seed)
    generator = setting.generator()
    w, u, r = (setting.randn(*shape, generator=generator) for shape in ((size, size), (size, 65), (size, 10)))
    theta = {"w": 0.9 * w / torch.linalg.matrix_norm(w, 2), "u": u / 65**0.5, "r": r / size**0.5}
    x = torch.as_tensor(batch.x).to(setting.device, setting.dtype)
    return _Layer(x, torch.as_tensor(batch.y).to(setting.device), theta)


def _ours(layer: _Layer) -> Callable[[], Tensor]:
    lower, z0 = blo.LowerProblem.fixed_point(layer.cell, batched=True), layer.z0

    def run() -> Tensor:
        return _flat(blo.value_and_hypergrad(layer.loss, lower, layer.theta, z0).grad)

    return run


def _by_hand(layer: _Layer, tol: float, adjoint_tol: float) -> Tensor:
    z = layer.z0
    with torch.no_grad():
        while True:
            last, z = z, layer.cell(layer.theta, z)
            if bool(((z - last).norm(dim=-1) <= tol).all()):
                break
    z, theta = z.requires_grad_(), {name: part.detach().requires_grad_() for name, part in layer.theta.items()}
    v, direct = torch.autograd.grad(layer.loss(theta, z), [z, theta["r"]])
    image = layer.cell(theta, z)
    q, least = v, adjoint_tol * v.norm(dim=-1)
    while True:  # q = v + J' q, with the Jacobian J of the layer
        last, q = q, v + torch.autograd.grad(image, z, q, retain_graph=True)[0]
        if bool(((q - last).norm(dim=-1) <= least).all()):
            break
    w, u = torch.autograd.grad(image, [theta["w"], theta["u"]], q)
    return _flat({"w": w, "u": u, "r": direct})


def _flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([parts[name].flatten() for name in ("w", "u", "r")])

"""betty: two problems under an engine, the lower one with `type="cg"`."""

from __future__ import annotations

import logging
from typing import Any

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem
from torch import Tensor, nn

from benchmarks.peers._base import Prepared, Unsupported
from benchmarks.smooth import Smooth

NAME = "betty"
DISTRIBUTION = "betty-ml"
METHOD = 'Engine, Config(type="cg")'
ITERATES = True


class _Variable(nn.Module):
    """A variable as a module."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().clone())

    def forward(self) -> Tensor:
        return self.value


def prepare(problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
    """Return one step of the engine; both learning rates are zero, so that it stays at the solution."""
    if damping:
        raise Unsupported("no damping")
    found: list[Tensor] = []

    class Upper(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Any:
            return problem.outer(self.module(), self.lower())

        def get_batch(self) -> Any:
            return None

        def grad_callback(self) -> None:
            found[:] = [parameter.grad.clone() for parameter in self.trainable_parameters()]

    class Lower(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Any:
            return problem.inner(self.upper(), self.module())

        def get_batch(self) -> Any:
            return None

    def variable(kind: Any, name: str, value: Tensor, **options: Any) -> Any:
        module = _Variable(value)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
        return kind(name=name, config=Config(**options), module=module, optimizer=optimizer)

    upper = variable(Upper, "upper", problem.theta)
    lower = variable(Lower, "lower", problem.z, type="cg", cg_iterations=products)
    strategy = "gpu" if problem.z.is_cuda else "cpu"
    logging.disable(logging.INFO)  # the engine logs to the root logger
    engine = Engine(
        config=EngineConfig(train_iters=1, strategy=strategy),
        problems=[upper, lower],
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )

    def run() -> Tensor:
        engine.run()
        return found[0]

    return Prepared(run, lambda gradient: gradient)

"""A compiled forward pass: gradients and statistics of the eager model, and a word where it has no derivatives."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor, nn

from adv_train import accelerate, methods
from adv_train.config import resolve
from adv_train.data import Batch
from adv_train.errors import UserError
from adv_train.methods import Method, Sizes
from adv_train.methods.losses import in_eval_mode
from adv_train.methods.weight_perturbation import WeightPerturbed
from adv_train.state import TrainingState
from adv_train.threat import Threat
from adv_train.train import fit
from adv_train.training_step import TrainingStep

CPU = torch.device("cpu")
# Of the tracer, which looks at `grad` of whatever tensor it meets.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
OPTIONS: dict[str, dict[str, Any]] = {
    "fast-bat": {"implicit": "shifted"},
    "fast-at-ga": {"coefficient": 0.0},
}
TWICE = ("fgsm-pgi", "learned-n-fgsm", "liet")


@pytest.fixture(autouse=True)
def afresh() -> None:
    dynamo.reset()
    dynamo.utils.counters.clear()


@pytest.fixture
def untranslated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace as for a compiler, and run what was traced as it is: in a tenth of the time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def network(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]
        return nn.Sequential(*layers).to(dtype)


def trained(method: Method, dtype: torch.dtype, *, compiles: bool) -> dict[str, Tensor]:
    """Return weights and statistics after two epochs of two whole batches and a smaller one."""
    model, draws = network(dtype), torch.Generator().manual_seed(1)
    x, y = torch.rand(22, 1, 8, 8, generator=draws, dtype=dtype), torch.randint(10, (22,), generator=draws)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    state = TrainingState(model, optimizer, method.remember(model, Sizes(x.shape, 10, 8)))
    noise = torch.Generator().manual_seed(2)
    view = accelerate.compiled(model) if compiles else None
    step = TrainingStep(state, method, Threat("linf", 0.1), CPU, generator=noise, model=view)
    for epoch in range(2):
        step.begin(3 * epoch, 6, epoch)
        for rows in torch.arange(22).split(8):
            step(Batch(x[rows], y[rows], rows))
    return model.state_dict()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], allowed: float) -> None:
    for name, value in expected.items():
        error = torch.linalg.vector_norm((found[name] - value).double()) / value.double().norm().clamp(min=1e-30)
        assert float(error) <= allowed, name


@pytest.mark.parametrize(
    ("name", "options", "dtype", "allowed"),
    [("fast-at", {"attack_mode": "eval"}, torch.float64, 1e-8), ("standard", {}, torch.float32, 1e-4)],
    ids=["double", "single"],
)
def test_a_compiled_forward_trains_as_the_eager_one(
    name: str, options: dict[str, Any], dtype: torch.dtype, allowed: float
) -> None:
    method = methods.METHODS.create(name, **options)
    found = trained(method, dtype, compiles=True)
    # One in each mode; the smaller batch, which no graph was made for, needs none of its own.
    assert dynamo.utils.counters["stats"]["unique_graphs"] == (2 if options else 1)
    assert accelerate.seconds_of_compiling() > 0
    assert_close(found, trained(method, dtype, compiles=False), allowed)


@pytest.mark.usefixtures("untranslated")
@pytest.mark.parametrize("name", [name for name in methods.METHODS.names() if name not in TWICE])
def test_every_method_that_differentiates_once_trains_on_a_compiled_forward(name: str) -> None:
    method = methods.METHODS.create(name, **OPTIONS.get(name, {}))
    assert method.differentiates_once
    found = trained(method, torch.float64, compiles=True)
    assert_close(found, trained(method, torch.float64, compiles=False), 1e-8)
    assert 0 < dynamo.utils.counters["stats"]["unique_graphs"] <= 4


@pytest.mark.usefixtures("untranslated")
@pytest.mark.parametrize("name", [*TWICE, *OPTIONS])
def test_the_others_say_so_and_fail(name: str) -> None:
    method = methods.METHODS.create(name)
    assert not method.differentiates_once
    assert not WeightPerturbed(base=method, gamma=0.1).differentiates_once
    with pytest.raises((RuntimeError, UserError)):  # never a wrong number
        trained(method, torch.float64, compiles=True)


@pytest.mark.usefixtures("untranslated")
def test_a_second_backward_pass_is_refused_and_not_answered_wrongly() -> None:
    # torch itself sees only some of these passes: not those of a layer that saves its input alone.
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    view, params = accelerate.compiled(model), dict(model.named_parameters())
    delta = torch.zeros(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = torch.func.functional_call(view, params, (delta + 0.5,))
    torch.autograd.grad(logits.sum(), delta, retain_graph=True)
    with pytest.raises(UserError, match="differentiates one forward pass twice"):
        torch.autograd.grad(logits.sum(), list(params.values()))


@pytest.mark.usefixtures("untranslated")
def test_modes_and_weights_are_those_of_the_model() -> None:
    model = network(torch.float64).train()
    view, x = accelerate.compiled(model), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    view.train()
    with torch.no_grad(), in_eval_mode(view):
        assert torch.allclose(view(x), model(x), rtol=0, atol=1e-12)
        assert not model.get_submodule(
            "0" if hasattr(model, "0") else next(iter(dict(model.named_children())))
        ).training
    for value in model.parameters():
        value.data.mul_(1.1)
    with torch.no_grad():
        assert torch.allclose(view(x), model(x), rtol=0, atol=1e-12)
    assert dict(view.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert "forward" not in vars(model)  # which is validated, saved and judged as it is


# --- runs -------------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"data": "digits", "method": "fast-at", "epochs": 2, "train_limit": 40, "batch_size": 16}
RUN = {**SMALL, "eps": 0.1, "device": "cpu", "validation_steps": 1, "accelerate": "compile"}


@pytest.mark.usefixtures("untranslated")
def test_a_run_says_how_long_compilation_took_and_keeps_the_switch(tmp_path: Path) -> None:
    done = fit(resolve(RUN), tmp_path / "run", progress=False)
    first, second = done.run.timing()
    assert 0 < first["prepare_seconds"] < first["train_seconds"] and second["prepare_seconds"] == 0
    assert done.run.config().compute.accelerate == "compile"
    again = fit(resolve(RUN), tmp_path / "again", progress=False)
    assert again.run.metrics() == done.run.metrics()
    with pytest.raises(UserError, match=r"differs in .*accelerate \(off, not compile\)"):
        fit(resolve({**RUN, "accelerate": "off"}), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("changes", "instead"),
    [
        ({"method": "fast-bat"}, r"use graph \(on a CUDA device\) or --implicit shifted"),
        ({"method": "fast-at-ga"}, r"compile cannot train fast-at-ga"),
        ({"method": "liet"}, r"differentiates a forward pass twice: use graph"),
    ],
    ids=lambda value: str(value.get("method")) if isinstance(value, dict) else "",
)
def test_a_method_that_differentiates_twice_is_refused_before_it_starts(changes: Any, instead: str) -> None:
    with pytest.raises(UserError, match=instead):
        resolve({**RUN, **changes})
    resolve({**RUN, "method": "fast-bat", "implicit": "shifted"})
    resolve({**RUN, "method": "fast-bat", "ig_weight": 0})


def test_without_a_compiler_the_run_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> object:
        raise RuntimeError("No working C++ compiler found\nin torch")

    monkeypatch.setattr(torch, "compile", lambda _: fails)
    with pytest.raises(UserError, match=r"compile does not work here \(No working C\+\+ compiler found\): install"):
        fit(resolve(RUN), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()

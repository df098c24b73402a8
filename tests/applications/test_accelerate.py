"""A training step at fixed addresses: weights of the plain trainer, and nothing that a CUDA graph cannot hold."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adv_train import accelerate, checkpoint, data, methods, models, training_step
from adv_train.accelerate import graph
from adv_train.config import RunConfig, resolve
from adv_train.config.optimizer import OptimizerConfig
from adv_train.data import Batch
from adv_train.data.motion import Motion
from adv_train.errors import UserError
from adv_train.methods import Sizes
from adv_train.methods.weight_perturbation import WeightPerturbed
from adv_train.state import TrainingState
from adv_train.steady_sgd import SteadySGD
from adv_train.threat import Threat
from adv_train.train import fit
from adv_train.trainer import Trainer
from adv_train.training_step import TrainingStep
from tests.accelerator import DEVICE

CPU = torch.device("cpu")
BUSY: dict[str, Any] = {"ema": 0.9, "clip": 0.5, "momentum_cycling": True, "eps_warmup": 1, "augment": "flip-crop"}


def busy(method: str) -> dict[str, Any]:
    """Return every option of a run that the method allows."""
    return {**BUSY, **({"mixup": 0.4} if getattr(methods.METHODS.find(method), "mixes", False) else {})}


def config(method: str = "fast-at", **values: Any) -> RunConfig:
    """Two epochs of two whole batches and a smaller one."""
    small = {"data": "digits", "method": method, "epochs": 2, "train_limit": 40, "batch_size": 16, "eps": 0.1}
    return resolve({**small, "lr": 0.1, "device": "cpu", "validation_steps": 1, **values})


def trainer(method: str, device: torch.device = CPU, **values: Any) -> Trainer:
    return Trainer(config(method, **values), data.load("digits", root="", limit=40, device=device), device)


def train(at: Trainer) -> list[dict[str, Any]]:
    return [at.train_epoch(epoch, lambda: None) for epoch in range(2)]


def weights(at: Trainer) -> dict[str, Tensor]:
    """Return all that training changes."""
    state = at.state
    momenta = {str(k): v for k, kept in enumerate(state.optimizer.state.values()) for v in kept.values()}
    average = {} if state.average is None else {f"average {k}": v for k, v in state.average.state_dict().items()}
    return {**state.model.state_dict(), **average, **state.memory, **momenta}


def whole_step(method: str, device: torch.device) -> tuple[TrainingStep, Batch]:
    """Return a step with all its parts, as a graph is to hold it, and a batch."""
    described: dict[str, Any] = {"channels": 3, "classes": 10, "image_size": 16, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    model = models.create("small-cnn", **described, seed=0).to(device).train()
    average = models.create("small-cnn", **described, seed=0).to(device)
    x = torch.empty(4, 3, 16, 16, device=device).fill_(0.5)
    places = torch.arange(4, device=device)
    still = torch.zeros(4, 2, dtype=torch.int64, device=device)
    optimizer = OptimizerConfig(lr=0.1, options={"nesterov": True}).create(model.parameters(), captured=True)
    for group in optimizer.param_groups:
        group.update(lr=accelerate.held(0.1, 0.1, device), momentum=accelerate.held(0.9, 0.9, device))
    chosen = WeightPerturbed(base=methods.METHODS.create(method), gamma=0.01)
    state = TrainingState(model, optimizer, chosen.remember(model, Sizes(x.shape, 10, 4)), average)
    step = TrainingStep(state, chosen, Threat("linf", 8 / 255), device, clip=1.0)
    step.latest = accelerate.held(0.5, 0.5, device)
    return step, Batch(x, places, places, Motion(still, still[:, 0] > 0))


@pytest.mark.parametrize("method", methods.METHODS.names())
def test_a_step_at_fixed_addresses_gives_the_weights_of_the_plain_trainer(method: str) -> None:
    plain, fixed = (trainer(method, **busy(method), accelerate=choice) for choice in ("off", "graph"))
    assert train(plain) == train(fixed)
    found, expected = weights(fixed), weights(plain)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("method", methods.METHODS.names())
def test_what_a_step_changes_stays_where_it_is(method: str) -> None:
    at = trainer(method, **busy(method), accelerate="graph")
    places: list[tuple[int, ...]] = []
    for epoch in range(2):
        at.train_epoch(epoch, lambda: places.append(tuple(value.data_ptr() for value in at.step.tensors())))
    assert len(places) == 2 * at.steps and len(set(places)) == 1
    assert {value.data_ptr() for value in weights(at).values()} <= set(places[0])


@pytest.mark.parametrize("device", [CPU, DEVICE], ids=["cpu", "no storage"])
@pytest.mark.parametrize("method", methods.METHODS.names())
def test_a_whole_step_waits_for_nothing_and_can_be_captured(
    method: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == DEVICE:  # which has no autocast
        monkeypatch.setattr(training_step, "computed_in", lambda *_: nullcontext())
    step, batch = whole_step(method, device)
    if device == CPU:
        step(batch)  # there the optimiser has made its state
    assert accelerate.obstacles(lambda: step(batch)) == []


def test_a_step_that_waits_is_found() -> None:
    step, batch = whole_step("standard", CPU)
    step.state.optimizer = torch.optim.SGD(step.state.model.parameters(), lr=torch.tensor(0.1))
    assert accelerate.obstacles(lambda: step(batch)) == ["aten._local_scalar_dense.default"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": True},
        {"dampening": 0.3},
        {"maximize": True, "weight_decay": 0.1},
        {"momentum": 0.0},
        {"foreach": True, "fused": False, "differentiable": False},
    ],
    ids=lambda options: " ".join(options) or "momentum",
)
def test_sgd_with_rates_on_the_device_is_that_of_torch(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 3, 3, 3), (16,), (7, 33), ()]
    first = [torch.randn(shape, generator=generator) for shape in shapes]
    moved: list[list[Tensor]] = []
    for kind in (torch.optim.SGD, SteadySGD):
        draws = torch.Generator().manual_seed(1)
        params = [value.clone().requires_grad_() for value in first]
        made = kind(params, lr=0.1, **{"momentum": 0.9, **options})
        device = CPU if kind is SteadySGD else None
        for number in range(5):
            group = made.param_groups[0]
            group["lr"] = accelerate.held(group["lr"], 0.1 / (3 + number), device)
            if group["momentum"] != 0:
                group["momentum"] = accelerate.held(group["momentum"], 0.9 - 0.013 * number, device)
            for value in params:
                value.grad = torch.randn(value.shape, generator=draws)
            made.step()
        moved.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def test_a_weight_without_a_gradient_in_the_first_steps_leaves_the_momentum_of_the_others() -> None:
    moved: list[list[Tensor]] = []
    for kind in (torch.optim.SGD, SteadySGD):
        params = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
        made = kind(params, lr=0.1, momentum=0.9, dampening=0.2)
        for number in range(4):
            for value in params[: 1 if number < 2 else 2]:
                value.grad = torch.full_like(value, 1.0 + number)
            made.step()
        moved.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


#: The options of torch's SGD that the tests above compare with torch.
COMPARED = {"params", "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach"}
IGNORED: list[dict[str, Any]] = [
    {"foreach": False},
    *({name: True} for name in inspect.signature(torch.optim.SGD).parameters if name not in COMPARED),
]


@pytest.mark.parametrize("option", IGNORED, ids=lambda option: "-".join(option))
def test_an_option_of_sgd_that_would_have_no_effect_is_refused(option: dict[str, Any]) -> None:
    (name,) = option
    value = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=rf"^`{name}[^\n]*` would have no effect[^\n]*Leave it out[^\n]*$"):
        SteadySGD([value], lr=0.1, **option)
    made = SteadySGD([value], lr=0.1)
    with pytest.raises(ValueError, match=f"`{name}"):
        made.add_param_group({"params": [torch.ones(3, requires_grad=True)], **option})
    assert len(made.param_groups) == 1
    with pytest.raises(ValueError, match=f"`{name}"):
        made.load_state_dict(torch.optim.SGD([value], lr=0.1, **option).state_dict())
    config = OptimizerConfig(lr=0.1, options=option)
    with pytest.raises(UserError, match=rf"`sgd` cannot train with these options: `{name}[^\n]*$"):
        config.create([value], captured=True)


def test_options_of_other_optimizers_are_refused_for_a_captured_sgd() -> None:
    assert {"fused", "differentiable"} <= {name for option in IGNORED for name in option}
    with pytest.raises(UserError, match="`sgd` has no option `capturable`"):
        OptimizerConfig(lr=0.1, options={"capturable": True})


def test_the_parts_of_a_step_are_captured_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things on a GPU, with a function in place of a graph."""
    captures: list[object] = []

    class Stream:
        def wait_stream(self, _: object) -> None:
            pass

    class Graph:
        def __init__(self, step: Any, *_: object) -> None:
            captures.append(self)
            self.replay = step

    for name, stand_in in (("synchronize", lambda _: None), ("current_stream", lambda _: Stream())):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(graph, "captured", Graph)
    plain, replayed = trainer("fgsm-pgi", accelerate="off"), trainer("fgsm-pgi", accelerate="graph")
    assert replayed.replayed is not None
    replayed.replayed._stream = Stream()  # type: ignore[assignment]
    counts = []
    for epoch in range(4):
        assert plain.train_epoch(epoch, lambda: None) == replayed.train_epoch(epoch, lambda: None)
        counts.append(len(captures))
    # Of two steps an epoch the third is captured, and of the smaller one an epoch likewise.
    assert counts == [0, 1, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(replayed).values(), strict=True))
    assert replayed.prepared() > 0
    replayed.state.load_state_dict(plain.state.state_dict())  # as a rollback does
    replayed.train_epoch(4, lambda: None)
    assert len(captures) == 4
    replayed.step.threat = Threat("linf", 0.05)
    replayed.replayed.begin()
    assert all(slot.graph is None for slot in replayed.replayed._slots.values())


def test_a_run_of_graphs_that_was_stopped_ends_like_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adv_train.train.accelerate.check", lambda *_: None)
    chosen = config("learned-n-fgsm", accelerate="graph", momentum_cycling=True, ema=0.9, epochs=3)
    whole = fit(chosen, tmp_path / "whole", progress=False)

    class Stopped(BaseException):
        pass

    write = checkpoint.save

    def stop(path: Path, state: checkpoint.Checkpoint) -> None:
        write(path, state)
        if state.epoch == 2:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(checkpoint, "save", stop)
        fit(chosen, tmp_path / "stopped", progress=False)
    assert fit(chosen, tmp_path / "stopped", progress=False).resumed_after == 2
    ended, other = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "stopped"))
    for part in ("model", "memory", "average"):
        assert all(torch.equal(ended[part][name], value) for name, value in other[part].items())
    assert ended["history"] == other["history"]
    lines = whole.run.timing()
    assert all(0 <= line["prepare_seconds"] <= line["train_seconds"] for line in lines)
    with pytest.raises(UserError, match=r"differs in accelerate \(off, not graph\)"):
        fit(chosen.changed({"accelerate": "off"}), tmp_path / "whole", progress=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device")
@pytest.mark.parametrize("method", methods.METHODS.names())
def test_replayed_training_is_eager_training(method: str) -> None:
    device = torch.device("cuda")
    plain, fixed = (trainer(method, device, accelerate=choice, device="cuda") for choice in ("off", "graph"))
    for at in (plain, fixed):
        for epoch in range(3):
            at.train_epoch(epoch, lambda: None)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(fixed)[name], value, rtol=1e-3, atol=1e-4)
    assert fixed.prepared() > 0


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_graph_without_a_gpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a CUDA device, but this run is on cpu: use compile or off"):
        fit(config(accelerate="graph"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_an_unknown_value_names_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"accelerate.*fast"):
        config(accelerate="fast")


def test_an_optimizer_that_cannot_be_captured_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot capture the optimizer `adagrad`: use one of .*adamw.*sgd"):
        config(accelerate="graph", optimizer="adagrad")


def test_off_may_be_written_in_yaml_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("compute: {accelerate: off}\n", encoding="utf-8")
    assert resolve({"data": "digits", "method": "fast-at"}, file=file).compute.accelerate == "off"

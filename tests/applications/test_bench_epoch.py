"""The seconds of an epoch in `adv-train bench`: what is timed, how they are estimated, and what stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch

from adv_train import bench, methods, models
from adv_train.bench.epoch import around_a_gradient
from adv_train.config import resolve
from adv_train.data import PUBLISHED_FACTS
from adv_train.methods import METHODS, Sizes
from adv_train.methods.base import Adversarial
from adv_train.methods.free_at import FreeAT
from adv_train.reproduction.seconds import published_seconds

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"model_name": "small-cnn", "image_size": 8, "batch_size": 4, "repeats": 1, "progress": False}
#: Those that keep something from step to step.
STATEFUL = {"atas", "fgsm-pgi", "free-at", "learned-n-fgsm", "liet", "sora"}


def test_a_method_with_a_memory_is_timed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[Any]] = {}

    def noting(kind: type[methods.Method]) -> None:
        honest = kind.__call__

        def call(method: methods.Method, *arguments: Any, **named: Any) -> methods.Step:
            calls.setdefault(METHODS.name_of(method), []).append(named)
            return honest(method, *arguments, **named)

        monkeypatch.setattr(kind, "__call__", call)

    noting(Adversarial)
    noting(FreeAT)
    bench.run(device=CPU, **SMALL)
    model = models.create("small-cnn", channels=3, classes=10, image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)
    sizes = Sizes(torch.Size((4, 3, 8, 8)), 10, 4)
    remembered = {name: set(METHODS.create(name).remember(model, sizes)) for name in METHODS.names()}
    assert {name for name, kept in remembered.items() if kept} == STATEFUL
    for name, named in calls.items():
        timed = [seen for seen in named if "state" in seen]  # the other calls count operations
        assert len(timed) >= 2, name
        for seen in timed:
            assert set(seen["state"]) == remembered[name] and seen["moment"] is not None
            # The start is read from the memory, and given to methods without one, as to the steps written by hand.
            assert (seen["start"] is None) == (name in STATEFUL), name


def clocked(monkeypatch: pytest.MonkeyPatch, step: float, update: float, forward: float) -> None:
    def interleaved(functions: Sequence[Callable[[], Any]], **_: Any) -> list[list[float]]:
        return [[step]] * (len(functions) - 2) + [[update], [forward]]

    # The package's function hides its module of the same name.
    monkeypatch.setattr(import_module("adv_train.bench.run"), "interleaved", interleaved)


def test_an_epoch_counts_every_step_on_a_batch_its_update_and_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, step=2.0, update=0.5, forward=0.25)
    rows = bench.run(device=CPU, only=["free-at"], epoch=bench.Epoch(1000, 300.0), **SMALL)
    found = {row.name: (row.replays, row.epoch_seconds, row.validation_seconds) for row in rows}
    # 250 batches of 4 images; Free-AT takes 8 steps on each. A forward pass of one image takes 1/16 s.
    assert found == {"standard": (1, 625.0, 18.75), "free-at": (8, 5000.0, 18.75)}
    (row, *_) = bench.run(device=CPU, only=[], **SMALL)
    assert (row.epoch_seconds, row.validation_seconds) == (50_000 / 4 * 2.5, None)


def test_the_update_and_the_forward_pass_leave_the_model_as_it_is() -> None:
    model = models.create(
        "small-cnn", channels=3, classes=10, image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0
    ).train()
    x = torch.rand(4, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update, forward = around_a_gradient(model, x)
    update()
    logits = forward()
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(logits, model.eval()(x))


def rows(**seconds: float | None) -> list[bench.Row]:
    kept = {"milliseconds": 1.0, "images_per_second": 1.0, "over_standard": 1.0, "over_by_hand": None, "peak_mib": None}
    return [
        bench.Row(
            name.replace("_", "-"), 1.0, **kept, epoch_seconds=value, validation_seconds=None if value is None else 0.5
        )
        for name, value in seconds.items()
    ]


def test_published_seconds_have_columns_of_their_own() -> None:
    head, _, *lines = bench.epochs(
        rows(standard=2.0, fast_at=4.0, gat=None), {"a table": {"fast-at": 19.0}}
    ).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *lines)]
    assert cells == [
        ["method", "s/epoch", "with validation", "over fast-at", "a table", "over fast-at"],
        ["standard", "2.00", "2.50", "0.50", "", ""],
        ["fast-at", "4.00", "4.50", "1.00", "19.0", "1.00"],
        ["gat", "", "", "", "", ""],
    ]


PUBLISHED = published_seconds(METHODS.names(), "preact-resnet-18", 32, 8 / 255)


def test_published_seconds_are_those_of_the_tables() -> None:
    first, second = PUBLISHED
    assert "table-1: PreActResNet-18" in first and "benchmark-8: ResNet-18" in second
    assert all("authors' GPU" in name for name in PUBLISHED)
    assert PUBLISHED[first] == {"fast-at": 23.1, "fast-at-ga": 75.3, "fast-bat": 61.4}
    assert PUBLISHED[second]["liet"] == 26.1 and "pgd-at" not in PUBLISHED[second]
    assert not published_seconds(["fast-bat, no IG", "standard"], "preact-resnet-18", 32, 8 / 255)
    for other in (("wrn-16-8", 32, 8 / 255), ("preact-resnet-18", 64, 8 / 255), ("preact-resnet-18", 32, 16 / 255)):
        assert not published_seconds(["fast-at"], *other)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        (name, form.format(name))
        for form, column in zip(("cifar10-8-{}", "cifar10-8-{}-benchmark"), PUBLISHED.values(), strict=True)
        for name in column
    ],
)
def test_the_published_run_has_steps_of_the_same_cost(name: str, preset: str) -> None:
    small, arguments = {"model": "small-cnn", "device": "cpu"}, PUBLISHED_FACTS["cifar10"].arguments
    plain = resolve({"data": "cifar10", "method": name, "eps": "8/255", **small})
    published = resolve(small, preset=preset)
    assert METHODS.name_of(published.method) == name and published.threat.eps == 8 / 255
    assert bench.step_cost(published, arguments) == bench.step_cost(plain, arguments)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_record_names_the_machine_that_computed(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda which=None: f"the card of {which}")
    found = bench.record(rows(standard=1.0), torch.device(device), settings={"model": "x"})
    assert ("threads" in found["machine"]) == (device == "cpu")
    assert device == "cpu" or found["machine"] == "the card of cuda"
    assert found["settings"] == {"model": "x"} and found["rows"][0]["name"] == "standard"


def test_an_older_record_has_no_seconds_of_an_epoch() -> None:
    old = bench.Row("fast-at", 1.0, 1.0, 1.0, 1.0, None, None)
    assert bench.epochs([old], {}).splitlines()[-1].replace(" ", "") == "|fast-at||||"

"""What is logged while a model trains: within an epoch, for TensorBoard and in bars; training does not depend on it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tqdm.notebook
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import adv_train
from adv_train import bars, checkpoint
from adv_train.cli import main
from adv_train.errors import UserError
from adv_train.observers import OBSERVERS, Observer, Progress, alarm
from adv_train.observers.steps import StepClock
from adv_train.train import fit
from tests.applications.test_train import config


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


class Stopped(Exception):
    pass


class Stopping(Observer):
    """Ends training after so many steps."""

    def __init__(self, left: int) -> None:
        self.left = left

    def part(self, record: Mapping[str, Any]) -> None:
        self.left -= 1
        if not self.left:
            raise Stopped


# --- within an epoch ---


def test_each_so_many_steps_are_logged_and_nothing_depends_on_it(tmp_path: Path) -> None:
    plain = fit(config(), tmp_path / "plain", progress=False).run
    run = fit(config(), tmp_path / "run", progress=False, log_every=1).run
    found = lines(run.path)
    assert [(line["epoch"], line["step"]) for line in found] == [(1 + i // 3, 1 + i) for i in range(6)]
    for record in run.metrics():  # three batches of 32 images: the mean of the means is the mean
        parts = [line for line in found if line["epoch"] == record["epoch"]]
        assert np.mean([line["loss"] for line in parts]) == pytest.approx(record["loss"], rel=1e-5)
        assert parts[-1]["lr"] == record["lr"] and all(line["images_per_second"] > 0 for line in parts)
    assert run.metrics() == plain.metrics()
    one, other = (checkpoint.load(folder.last) for folder in (run, plain))
    assert all(torch.equal(one.model[name], value) for name, value in other.model.items())


def test_an_interrupted_log_goes_on_without_gap_or_double(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(config(), tmp_path / "run", progress=False, log_every=2, observers=[Stopping(3)])
    assert [line["step"] for line in lines(tmp_path / "run")] == [2, 4, 6]  # of which 4 and 6 are in epoch 2
    with (tmp_path / "run" / "steps.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')  # as a killed process leaves it
    fit(config(epochs=2), tmp_path / "run", progress=False, log_every=2)
    assert [(line["epoch"], line["step"]) for line in lines(tmp_path / "run")] == [(1, 2), (2, 4), (2, 6)]


def test_a_part_is_measured_from_the_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("adv_train.observers.steps.time.perf_counter", lambda: now[0])
    clock = StepClock(2, first=3)
    clock.start_epoch()

    class Sum:  # stands for a tensor on a device: reading it waits
        def __init__(self, value: float) -> None:
            self.value, self.reads = value, 0

        def __float__(self) -> float:
            self.reads += 1
            return self.value

    sums = [Sum(value) for value in (6.0, 10.0, 13.0, float("nan"))]
    told = []
    for total in sums:
        now[0] += 0.5
        told.append(clock.step(total, 4))  # type: ignore[arg-type]
    assert [total.reads for total in sums] == [1, 0, 1, 0]
    assert told[0] == {"step": 4, "loss": 1.5, "images_per_second": 8.0} and told[1] is told[3] is None
    assert told[2] == {"step": 6, "loss": (13 - 6) / 8, "images_per_second": 8.0}
    assert clock.step(Sum(float("nan")), 4) == {"step": 8, "loss": None, "images_per_second": pytest.approx(8 / 0.5)}  # type: ignore[arg-type]


def test_the_flag_shows_and_writes_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "fit",
        "--data",
        "digits",
        "--method",
        "fast-at",
        "--train-limit",
        "96",
        "--epochs",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*words, "--log-every", "2", "--out", str(tmp_path / "run")]) == 0
    (line,) = lines(tmp_path / "run")
    assert f"epoch 1/1  step 2  loss {line['loss']:.3f}" in capsys.readouterr().err
    assert main([*words, "--log-every", "0", "--out", str(tmp_path / "other")]) == 2
    assert "`log_every` must be" in capsys.readouterr().err


# --- TensorBoard ---


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which the second epoch was interrupted."""
    run = tmp_path_factory.mktemp("logs") / "run"
    with pytest.raises(Stopped):
        fit(config(), run, progress=False, log_every=1, observers=[OBSERVERS.create("tensorboard"), Stopping(5)])
    fit(config(), run, progress=False, log_every=1, observers=[OBSERVERS.create("tensorboard")])
    return run


def read(folder: Path) -> EventAccumulator:
    log = EventAccumulator(str(folder))
    log.Reload()
    return log


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")


def test_tensorboard_shows_each_figure_of_each_epoch_once(logged: Path) -> None:
    log = read(logged / "tensorboard")
    metrics = [json.loads(line) for line in (logged / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "lr", "val_sa", "val_ra", "val_top_class", "implicit_share"):
        found = [(event.step, event.value) for event in log.Scalars(name)]
        assert found == [(record["epoch"], pytest.approx(record[name], rel=1e-6)) for record in metrics]
    assert [event.step for event in log.Scalars("train_seconds")] == [1, 2]


def test_tensorboard_shows_steps_on_an_axis_of_their_own(logged: Path) -> None:
    log = read(logged / "tensorboard" / "steps")
    for name in ("loss", "lr", "images_per_second"):
        found = [(event.step, event.value) for event in log.Scalars(f"steps/{name}")]
        assert found == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines(logged)]


def test_tensorboard_shows_what_was_chosen(logged: Path) -> None:
    log = read(logged / "tensorboard")
    (text, *_) = log.Tensors("config/text_summary")
    assert "name: fast-at" in text.tensor_proto.string_val[0].decode()
    plugin = log.summary_metadata["_hparams_/session_start_info"].plugin_data
    told = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert told["method"].string_value == "fast-at" and told["epochs"].number_value == 2
    assert told["eps"].number_value == pytest.approx(config().threat.eps)
    experiment = HParamsPluginData.FromString(log.summary_metadata["_hparams_/experiment"].plugin_data.content)
    assert {info.name.tag for info in experiment.experiment.metric_infos} == {"loss", "val_sa", "val_ra"}
    assert "_hparams_/session_end_info" in log.summary_metadata


def test_tensorboard_shows_attacked_images_within_the_budget(logged: Path) -> None:
    log = read(logged / "tensorboard")
    clean, attacked, change = (_picture(log, name) for name in ("clean", "attacked", "change"))
    assert clean.shape == attacked.shape == (16, 64, 3)  # two rows of eight images
    largest = np.abs(clean - attacked).max()
    assert 0 < largest <= config().threat.eps + 1 / 255 and change.std() > 0
    dataset = adv_train.data.load("digits", root="")  # type: ignore[attr-defined]
    first = dataset.validation.images[0, 0].float()
    first = first / 255 if dataset.validation.images.dtype == torch.uint8 else first
    np.testing.assert_allclose(clean[:8, :8, 0], first.numpy(), atol=1 / 255)


def _picture(log: EventAccumulator, name: str) -> Any:
    (event,) = log.Images(f"images/{name}")
    assert event.step == 2
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"), dtype=np.float64) / 255


def test_tensorboard_shows_the_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarm, "overfitting", lambda history: "Overfitted." if len(history) == 2 else None)
    with pytest.warns(UserWarning, match="Overfitted") as warned:
        fit(config(), tmp_path / "run", progress=False, observers=[OBSERVERS.create("tensorboard")])
    (event,) = read(tmp_path / "run" / "tensorboard").Tensors("alarm/text_summary")
    assert event.step == 2 and event.tensor_proto.string_val[0].decode() == str(warned[0].message)


def test_without_tensorboard_one_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'torch-blo\[tensorboard\]'"):
        fit(config(), tmp_path / "run", progress=False, observers=[OBSERVERS.create("tensorboard")])


# --- bars ---


def kernel(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Make this process look like the kernel of a notebook, or another shell of IPython."""
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(config=settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)


def test_a_notebook_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not bars.in_notebook()
    kernel(monkeypatch)  # IPython in a terminal
    assert not bars.in_notebook() and not bars.are_shown(None)
    kernel(monkeypatch, IPKernelApp={})
    assert bars.in_notebook() and bars.are_shown(None) and not bars.are_shown(False)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    sys.modules["IPython"].get_ipython = lambda: None  # type: ignore[attr-defined]
    assert not bars.in_notebook()  # imported by a script


class Widget(tqdm.tqdm):  # type: ignore[type-arg]
    """Stands for the bar of widgets."""


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_shows_a_bar_with_loss_accuracies_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], widgets: bool
) -> None:
    kernel(monkeypatch, IPKernelApp={})
    monkeypatch.setattr(tqdm.notebook, "tqdm_notebook", Widget)
    monkeypatch.setattr(bars, "find_spec", lambda name: object() if widgets and name == "ipywidgets" else None)
    kinds, close = [], Progress.close
    monkeypatch.setattr(Progress, "close", lambda self: (kinds.append(type(self._bar)), close(self)))
    fit(config(), tmp_path / "run", progress=None, log_every=1)
    assert kinds == [Widget if widgets else tqdm.tqdm]
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    said = capsys.readouterr().err
    told = f"epoch 2/2, loss {record['loss']:.3f}, SA {record['val_sa']:.1%}, RA {record['val_ra']:.1%}"
    assert told in said and "6/6 [" in said and "<" in said  # elapsed<left
    assert "epoch 1/2, loss" in said


def test_elsewhere_a_line_an_epoch_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(config(), tmp_path / "run", progress=None)
    assert [line.partition("  ")[0] for line in capsys.readouterr().err.splitlines()[1:]] == [
        "fast-at on digits: epoch 1/2",
        "fast-at on digits: epoch 2/2",
    ]

"""A run that was killed, at any moment and any number of times, ends like one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adv_train import checkpoint, records
from adv_train.comparison import contenders
from adv_train.config import RunConfig, resolve, to_yaml
from adv_train.errors import UserError
from adv_train.loading import load_checkpoint, load_model
from adv_train.train import fit

EPOCHS = 4


def config(**values: Any) -> RunConfig:
    small = {"data": "digits", "method": "fast-bat", "epochs": EPOCHS, "train_limit": 96, "batch_size": 32}
    return resolve({**small, "device": "cpu", "validation_steps": 2, **values})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    fit(config(), run, progress=False)
    return run


def assert_same_run(run: Path, truth: Path) -> None:
    """Equal bits in every weight, in the optimiser, and in every record; only the seconds may differ."""
    for name in ("last.pt", "best.pt"):
        found, expected = checkpoint.load(run / name), checkpoint.load(truth / name)
        assert found.model.keys() == expected.model.keys()
        for key, value in expected.model.items():
            assert torch.equal(found.model[key], value), (name, key)
        for index, state in expected.optimizer.get("state", {}).items():
            assert torch.equal(found.optimizer["state"][index]["momentum_buffer"], state["momentum_buffer"])
        for attribute in ("config", "epoch", "history", "best_epoch", "best_score"):
            assert getattr(found, attribute) == getattr(expected, attribute), (name, attribute)
    for name in ("metrics.jsonl", "config.yaml"):
        assert (run / name).read_bytes() == (truth / name).read_bytes(), name
    assert {file.name for file in run.iterdir()} == {file.name for file in truth.iterdir()}


class Stopped(BaseException):
    """The end of a process, played inside this one."""


def stop_at_write(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> Callable[[], int]:
    """Let no more than `number` files be written, and none half; returns the count of writes."""
    original = checkpoint.replace_file
    count = 0

    def write(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count == number and not after:
            path.with_name(f".{path.name}.tmp").write_bytes(content[: len(content) // 2])  # as a kill leaves it
            raise Stopped
        original(path, content)
        if count == number:
            raise Stopped

    for module in (checkpoint, records):
        monkeypatch.setattr(module, "replace_file", write)
    return lambda: count


def test_stopping_before_or_after_any_write_changes_nothing(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        writes = stop_at_write(patch, -1, after=False)
        fit(config(), tmp_path / "counted", progress=False)
        total = writes()
    assert total >= 1 + 3 * EPOCHS  # the configuration; and at least last.pt, seconds and metrics each epoch
    for number in range(1, total + 1):
        for after in (False, True):
            run = tmp_path / f"{number}-{after}"
            with monkeypatch.context() as patch:
                stop_at_write(patch, number, after=after)
                with pytest.raises(Stopped):
                    fit(config(), run, progress=False)
            fit(config(), run, progress=False)
            assert_same_run(run, uninterrupted)


def test_stopping_in_the_middle_of_an_epoch_changes_nothing(tmp_path: Path, uninterrupted: Path) -> None:
    for step in (1, 2, 5, 10):
        run = tmp_path / str(step)
        with pytest.MonkeyPatch.context() as patch:
            left = step

            def update(*_: Any) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Stopped

            patch.setattr("adv_train.observers.progress.Progress.step", update)
            with pytest.raises(Stopped):
                fit(config(), run, progress=False)
        fit(config(), run, progress=False)
        assert_same_run(run, uninterrupted)


# One process imports PyTorch and then forks a child for every attempt: importing takes longer than the training.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from adv_train.config import RunConfig, read_yaml
from adv_train import data
import adv_train.train

data.load("digits", root="")  # once for all children
run, seed, quickest, slowest = Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
config = RunConfig.of(read_yaml(Path(sys.argv[1])))
moments = random.Random(seed)
kills = 0
while True:
    child = os.fork()
    if child == 0:
        adv_train.train.fit(config, run, progress=False)
        os._exit(0)
    time.sleep(moments.uniform(quickest, slowest))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(f"a child ended with {status}") if status else None
        break
    kills += 1
    slowest *= 1.1  # so that even a machine that slows down comes to an end
print(kills)
"""


def test_sigkill_at_random_moments_changes_nothing(tmp_path: Path, uninterrupted: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config()))
    words = [sys.executable, "-c", KILLER, str(file), str(tmp_path / "run"), "1", "0.1", "1.0"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    assert_same_run(tmp_path / "run", uninterrupted)


def test_the_command_killed_and_given_again_goes_on(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    words = [sys.executable, "-m", "adv_train", "fit", "--data", "digits", "--method", "fast-bat", "--out", str(run)]
    words += f"--epochs {EPOCHS} --train-limit 96 --batch-size 32 --device cpu --validation-steps 2".split()
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline() + process.stderr.readline()  # the data, then a line an epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "epoch 1/4" in first
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "is trained: 4 epochs of fast-bat on digits" in again.stdout
    assert "epoch 1/4" not in again.stderr  # it went on
    assert_same_run(run, uninterrupted)


# --- what a run goes on from ------------------------------------------------------------------------------------------


def test_a_longer_interruption_loses_no_seconds(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at_write(patch, 6, after=True)
        with pytest.raises(Stopped):
            fit(config(), run, progress=False)
    result = fit(config(), run, progress=False)
    assert result.resumed_after >= 1
    assert [line["epoch"] for line in result.run.timing()] == list(range(1, EPOCHS + 1))


def test_a_damaged_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(config(epochs=1), run, progress=False)
    (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:1000])
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(UserError, match=r"last\.pt` is not a checkpoint"):
        fit(config(epochs=1), run, progress=False)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.parametrize("change", [{"lr": 0.7}, {"epochs": 9}])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    fit(config(epochs=1), tmp_path / "run", progress=False)
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    mixed = checkpoint.Checkpoint(**{**vars(saved), "config": saved.config.changed(change)})
    checkpoint.save(tmp_path / "run" / "last.pt", mixed)
    with pytest.raises(
        UserError, match=rf"does not belong to the configuration beside it: it differs in {next(iter(change))}"
    ):
        fit(config(epochs=1), tmp_path / "run", progress=False)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    fit(config(epochs=2), tmp_path / "run", progress=False)
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    smaller = {name: value for name, value in saved.model.items() if "weight" in name}
    mixed = checkpoint.Checkpoint(**{**vars(saved), "model": smaller, "epoch": 1, "history": saved.history[:1]})
    checkpoint.save(tmp_path / "run" / "last.pt", mixed)
    with pytest.raises(
        UserError, match="does not fit the configuration beside it: the weights belong to another model"
    ):
        fit(config(epochs=2), tmp_path / "run", progress=False)


# --- more epochs ------------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_where_it_is_given_more_epochs(tmp_path: Path) -> None:
    # With a constant rate the longer run is the run that was longer from the start.
    whole = fit(config(schedule="constant"), tmp_path / "whole", progress=False).run
    run = fit(config(schedule="constant", epochs=2), tmp_path / "run", progress=False).run
    first = (run.best.read_bytes(), run.metrics())
    longer = fit(config(schedule="constant"), run.path, progress=False)
    assert longer.resumed_after == 2 and run.config().training.extended_from == (2,)
    assert run.metrics() == whole.metrics() and run.metrics()[:2] == first[1]
    found, truth = checkpoint.load(run.last).model, checkpoint.load(whole.last).model
    assert all(torch.equal(found[name], value) for name, value in truth.items())
    load_model(run.path)  # the best epoch may be one of the shorter run
    assert fit(config(schedule="constant"), run.path, progress=False).resumed_after == EPOCHS  # nothing left to do
    again = fit(config(schedule="constant", epochs=EPOCHS + 1), run.path, progress=False)
    assert again.resumed_after == EPOCHS and run.config().training.extended_from == (2, EPOCHS)


def test_the_best_epoch_may_be_older_than_the_last_extension(tmp_path: Path) -> None:
    for epochs in (1, 2, 3):  # no weight changes, so the first epoch stays the best
        run = fit(config(lr=0.0, epochs=epochs), tmp_path / "run", progress=False).run
    assert load_checkpoint(run).epoch == 1 and load_checkpoint(run, "last").epoch == 3
    later = run.config()
    for other in (config(lr=0.0, epochs=1, seed=9), config(lr=0.0, epochs=3)):
        assert later.differences(other, of_checkpoint=True)


@pytest.mark.parametrize("stages", [(2, 3), (1, 2, 3)])
def test_an_extended_run_is_repeated_in_the_same_stages(tmp_path: Path, stages: tuple[int, ...]) -> None:
    for epochs in stages:
        run = fit(config(epochs=epochs), tmp_path / "run", progress=False).run
    again, file = tmp_path / "again", run.config_file
    told = ", then --epochs ".join(map(str, stages[:-1]))
    with pytest.raises(UserError, match=f"train it with --epochs {told} first"):
        fit(resolve({}, file=file), again, progress=False)
    assert not again.exists()
    for flags in (*({"epochs": epochs} for epochs in stages[:-1]), {}):
        fit(resolve(flags, file=file), again, progress=False)
    assert_same_run(again, run.path)
    (contender,) = contenders(str(file))  # a comparison trains all methods from their first epoch
    assert contender.config({}, {}, 3).training.extended_from is None


@pytest.mark.parametrize("stages", [(2,), (1,), (1, 2)])
def test_a_run_of_other_stages_is_not_taken_for_the_beginning_of_an_extended_one(
    tmp_path: Path, stages: tuple[int, ...]
) -> None:
    wanted = (1, 2) if stages == (2,) else (2,)  # each run gets the same settings and three epochs
    for epochs in stages:
        fit(config(epochs=epochs), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match=r"holds a run with another configuration.* extended_from"):
        fit(config(epochs=3, extended_from=wanted), tmp_path / "run", progress=False)


def test_stages_increase_and_those_that_are_not_below_the_epochs_are_dropped() -> None:
    assert config(extended_from=[2]).training.extended_from == (2,)
    assert config(extended_from=[2, 3], epochs=3).training.extended_from == (2,)
    with pytest.raises(UserError, match="`extended_from` must be increasing"):
        config(extended_from=[3, 2])


def test_an_extension_that_was_stopped_goes_on_exactly(tmp_path: Path) -> None:
    fit(config(epochs=2), tmp_path / "whole", progress=False)
    fit(config(epochs=2), tmp_path / "run", progress=False)
    fit(config(), tmp_path / "whole", progress=False)
    for stop in (1, 2, 3):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            stop_at_write(patch, stop, after=True)
            fit(config(), tmp_path / "run", progress=False)
    fit(config(), tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_unfinished_run_and_a_shorter_one_are_other_configurations(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_at_write(patch, 4, after=True)
        fit(config(), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match=r"differs in epochs \(5, not 4\)"):
        fit(config(epochs=5), tmp_path / "run", progress=False)
    fit(config(), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match=r"differs in epochs \(3, not 4\)"):
        fit(config(epochs=3), tmp_path / "run", progress=False)

"""Two processes with half of every batch train what one process trains with the whole of it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from adv_train import checkpoint, data
from adv_train.cli import main
from adv_train.cli.parser import COMMANDS, SHARED
from adv_train.errors import UserError
from adv_train.loading import load_data
from adv_train.methods import METHODS
from adv_train.ranks import Ranks, Share, Stream, uniform
from adv_train.records import RunFolder
from adv_train.train import _likeness, fit
from adv_train.trainer import Trainer
from tests.applications import ranked

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'applications'}", "OMP_NUM_THREADS": "1"}
NORMED = ["fast-at-normed", "fast-bat-normed"]
RESUMED = ["fast-at", "fgsm-pgi", "free-at", "learned-n-fgsm"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks made, in `two`, and one process, in `one`."""
    top = tmp_path_factory.mktemp("ranks")
    context = mp.spawn(ranked.work, (str(top),), nprocs=2, join=False)
    ranked.train_all(top / "one")
    assert context is not None
    while not context.join():
        pass
    return top


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """What each rank saw."""
    return [torch.load(folder / f"seen-{rank}.pt", weights_only=False) for rank in range(2)]


def assert_near(found: Mapping[str, Tensor], truth: Mapping[str, Tensor], tolerance: float) -> None:
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        assert found[name].shape == value.shape, name
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_run(run: Path, truth: Path, tolerance: float) -> None:
    """Weights, averages, memories and records are the same."""
    found, expected = checkpoint.load(run / "last.pt"), checkpoint.load(truth / "last.pt")
    for part in ("model", "average", "memory"):
        assert_near(getattr(found, part), getattr(expected, part), tolerance)
    for record, wanted in zip(found.history, expected.history, strict=True):
        assert record == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert found.best_epoch == expected.best_epoch


def test_every_method_is_trained_by_two_ranks() -> None:
    assert set(ranked.RUNS) == set(METHODS.names())


@pytest.mark.parametrize("method", [*ranked.RUNS, *NORMED, "rolled-back"])
def test_two_ranks_train_what_one_process_trains(method: str, folder: Path) -> None:
    one, two = folder / "one" / method, folder / "two" / method
    assert_same_run(two, one, 1e-10)
    assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}
    moved = checkpoint.load(one / "last.pt").model
    assert any(value.abs().max() > 0 for value in moved.values())


@pytest.mark.parametrize("method", RESUMED)
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(method: str, folder: Path) -> None:
    assert_same_run(folder / "two" / f"{method}-resumed", folder / "two" / method, 0)


@pytest.mark.parametrize("method", RESUMED)
def test_one_process_goes_on_with_what_two_began(method: str, folder: Path) -> None:
    left = folder / "two" / f"{method}-left"
    ranked.go_on(left, method)
    assert_same_run(left, folder / "one" / method, 1e-10)


def test_ranks_hold_the_same_model_where_each_has_statistics_of_its_own(seen: list[dict[str, Any]]) -> None:
    first, second = (rank["models"] for rank in seen)
    assert_near(second, first, 0)
    assert any(name.endswith("running_var") and (value != 1).any() for name, value in first.items())


def test_an_epoch_is_rolled_back_on_all_ranks(folder: Path) -> None:
    found = checkpoint.load(folder / "two" / "rolled-back" / "last.pt")
    assert [record.get("rolled_back_to") for record in found.history] == [None, 1, None]


def test_the_first_rank_decides_which_epoch_is_best(folder: Path, seen: list[dict[str, Any]]) -> None:
    first, second = (rank["best"] for rank in seen)
    assert first == second == checkpoint.load(folder / "disagreed" / "last.pt").history[first["epoch"] - 1]


def test_two_ranks_judge_as_one_process_does(folder: Path, seen: list[dict[str, Any]]) -> None:
    truth = ranked.judge(folder / "two" / "trades")
    for rank in seen:
        found = rank["judged"]
        assert np.array_equal(found["clean"], truth["clean"])
        assert found["settings"] == truth["settings"]
        for name, expected in truth["verdicts"].items():
            for verdict, wanted in zip(found["verdicts"][name], expected, strict=True):
                assert np.array_equal(verdict, wanted), name
        np.testing.assert_allclose(found["examples"], truth["examples"], rtol=0, atol=1e-6)
    for robust, _ in truth["verdicts"].values():
        assert not robust.all() and robust.any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_two_ranks_write_the_record_that_one_process_writes(folder: Path, tmp_path: Path) -> None:
    judged = folder / "judged"
    shutil.copytree(folder / "two" / "trades", tmp_path / "run")
    ranked.judge_run(tmp_path / "run")
    files = {file.relative_to(tmp_path / "run") for file in (tmp_path / "run").rglob("*")}
    assert {file.relative_to(judged) for file in judged.rglob("*")} == files
    for name in ("outcomes.npz", "images.npz"):
        found, truth = np.load(judged / name), np.load(tmp_path / "run" / name)
        for part in ("pgd", "predicted_pgd", "clean", "labels") if name == "outcomes.npz" else truth.files:
            assert np.array_equal(found[part], truth[part]), (name, part)


def test_two_ranks_judge_a_single_image(seen: list[dict[str, Any]]) -> None:
    assert [rank["single"] for rank in seen] == [1, 1]


def test_what_ends_one_rank_ends_the_other(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["compiled"] == (
            "UserError",
            "`accelerate` compile trains in one process: with several, use --accelerate off.",
        )
        assert rank["diverged"][0] == "Diverged"
        assert rank["small"][0] == "UserError" and "take a larger batch size" in rank["small"][1]
        assert rank["unlike"][0] == "UserError" and "must be the same on all ranks" in rank["unlike"][1]
    kind, text = seen[0]["lost"]
    assert kind == "UserError" and text.startswith("Stopped, because another rank has ended")


def test_a_killed_rank_ends_the_other_and_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    chosen = "--data digits --method fast-at --eps 0.1 --epochs 6 --train-limit 640 --device cpu --validation-steps 1"
    command = [sys.executable, "-m", "adv_train", "fit", *chosen.split(), "--out", str(run)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    writer, other = (
        subprocess.Popen(command, env={**told, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    )
    while not (run / "metrics.jsonl").exists() and writer.poll() is None:
        time.sleep(0.01)
    writer.kill()
    assert "error: rank 1: Stopped, because another rank has ended" in other.communicate(timeout=60)[1]
    writer.communicate()
    assert (writer.returncode, other.returncode) == (-signal.SIGKILL, 2)
    done = checkpoint.load(run / "last.pt").epoch
    result = fit(RunFolder(run).config(), run, progress=False)
    assert 1 <= result.resumed_after == done < 6
    assert [line["epoch"] for line in result.run.metrics()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"WORLD_SIZE": "2"}, "lacks RANK and MASTER_ADDR and MASTER_PORT: start with torchrun"),
        ({"RANK": "1"}, "lacks WORLD_SIZE and MASTER_ADDR"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "RANK=2 and WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "RANK=0 and WORLD_SIZE=two"),
    ],
    ids=["no rank", "no size", "too high", "no number"],
)
@pytest.mark.parametrize("command", ["fit --data digits --method standard", "eval runs/none", "list"])
def test_half_an_environment_is_refused(
    told: dict[str, str],
    message: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(SHARED)))
def test_other_commands_run_in_one_process(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main([command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"Only fit and eval run on several processes: start `{command}` without torchrun.")


def test_torchrun_starts_the_ranks_of_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "adv_train", "fit"]
    chosen = ["--data", "digits", "--method", "standard", "--eps", "0.1", "--epochs", "1", "--train-limit", "64"]
    found = subprocess.run(
        [*command, *chosen, "--device", "cpu", "--out", str(tmp_path / "run")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("is trained") == 1 and found.stderr.count("epoch 1/1") == 1
    assert '"ranks": 2' in (tmp_path / "run" / "timing.jsonl").read_text()


def test_no_rank_is_left_without_two_samples() -> None:
    assert data.batch_bounds(70, 32) == [(0, 32), (32, 64), (64, 70)]
    assert data.batch_bounds(70, 32, 3) == [(0, 32), (32, 64), (64, 70)]
    assert data.batch_bounds(70, 32, 4) == [(0, 32), (32, 70)]
    for samples, size, ranks in ((70, 5, 3), (5, 32, 3)):
        with pytest.raises(UserError, match=r"two samples of every batch.*fewer processes"):
            data.batch_bounds(samples, size, ranks)


@pytest.mark.parametrize("whole", [6, 7, 8])
def test_the_parts_of_a_batch_are_all_of_it(whole: int) -> None:
    drawn = uniform(torch.empty(whole, 2), generator=Stream().manual_seed(1))
    parts = [Share(whole, Ranks(rank, 3)) for rank in range(3)]
    for part in parts:
        stream = Stream()
        stream.manual_seed(1)
        stream.share = part
        assert torch.equal(uniform(torch.empty(len(part), 2), generator=stream), drawn[part.rows])
        for first in range(4):
            numbers = torch.arange(whole)
            tail = part.tail(first)
            assert numbers[first:][tail.rows].tolist() == [n for n in numbers[part.rows].tolist() if n >= first]
            assert len(tail) == len(numbers[first:][tail.rows])
            head = part.head(first)
            assert numbers[:first][head.rows].tolist() == [n for n in numbers[part.rows].tolist() if n < first]
    assert sum(part.weight for part in parts) == pytest.approx(1)


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_several_processes_need_devices_of_their_own(device: str) -> None:
    with pytest.raises(UserError, match=r"each on a GPU of its own"):
        Ranks(1, 2).device(torch.device(device))
    assert Ranks(0, 1).device(torch.device(device)) == torch.device(device)


def test_batchnorm_of_all_ranks_needs_equal_parts() -> None:
    uneven = ranked.config("fast-at", **ranked.NORMED, sync_batchnorm=True)
    dataset, device = load_data(uneven, None), torch.device("cpu")
    with pytest.raises(UserError, match=r"the size of each batch must be divisible by 2.*\[17, 31\]"):
        Trainer(uneven, dataset, device, Ranks(0, 2))
    Trainer(uneven, dataset, device)


def test_a_part_of_a_part_counts_from_the_same_sample() -> None:
    shares = [Share(9, Ranks(rank, 2)).tail(3).head(4) for rank in range(2)]
    assert [list(range(3, 7))[share.rows] for share in shares] == [[4, 6], [3, 5]]


def test_data_that_differ_in_two_images_alone_are_told_apart() -> None:
    config, device = ranked.config("fast-at"), torch.device("cpu")
    dataset = load_data(config, None)
    first, second = (dataset.train.labels == 0).nonzero().flatten()[:2].tolist()
    images = dataset.train.images.clone()
    images[[first, second]] = images[[second, first]]
    other = replace(dataset, train=replace(dataset.train, images=images))
    assert _likeness(Trainer(config, dataset, device)) == _likeness(Trainer(config, load_data(config, None), device))
    assert _likeness(Trainer(config, dataset, device)) != _likeness(Trainer(config, other, device))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer", UserError),
        ("CUDA out of memory", RuntimeError),
    ],
)
def test_only_a_failed_exchange_is_the_fault_of_another_rank(
    message: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(found: Tensor) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.distributed, "all_reduce", failing)
    with pytest.raises(kind, match=r"Connection closed|out of memory") as error:
        Ranks(0, 2).add(torch.ones(1))
    assert type(error.value) is kind

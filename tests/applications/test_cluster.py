"""Runs on a Ray cluster of several GPUs, in part with a stand-in for Ray; `test_real_ray` kills a real worker."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adv_train.cli import cluster, main
from adv_train.comparison import Cell, Judgement
from adv_train.config import resolve
from adv_train.errors import UserError
from adv_train.records import RunFolder
from tests.applications.stand_in_for_ray import Died, StandIn
from tests.applications.test_bad_input import refusal

Work = Callable[[Any, str], str | None]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return join(monkeypatch, StandIn())


def join(monkeypatch: pytest.MonkeyPatch, ray: StandIn) -> StandIn:
    for name in cluster._ENVIRONMENT:
        monkeypatch.setenv(name, "0")
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def cells(*names: str, device: str = "cpu") -> list[Any]:
    config = SimpleNamespace(compute=SimpleNamespace(device=device))
    return [SimpleNamespace(name=name, config=config, is_done=lambda: False) for name in names]


def test_a_cell_whose_worker_dies_is_begun_again_at_most_twice(
    ray: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []
    deaths = {"twice": 2, "ever": 9}

    def work(cell: Any, folder: str) -> str | None:
        begun.append(cell.name)
        assert folder == str(Path.cwd())
        if begun.count(cell.name) <= deaths.get(cell.name, 0):
            raise Died
        if cell.name == "wrong":
            raise ValueError("no luck")
        return "no data" if cell.name == "bad" else None

    monkeypatch.setattr(cluster, "work", work)
    names = ["well", "bad", "wrong", "twice", "ever"]
    found = {cell.name: failure for cell, failure in cluster.run_on_ray(cells(*names), progress=None)}
    died = "its worker died (The worker died unexpectedly while executing this task.)"
    assert found == {"well": None, "bad": "no data", "wrong": "ValueError: no luck", "twice": None, "ever": died}
    assert {name: begun.count(name) for name in names} == {"well": 1, "bad": 1, "wrong": 1, "twice": 3, "ever": 3}
    assert not ray.joined
    said = capsys.readouterr().err
    assert said.count("; it resumes after its last finished epoch.\n") == 4
    assert "5 of 5, " in said and ", bad: no data\n" in said


def test_every_cell_has_a_process_and_what_it_computes_on(ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "work", lambda cell, folder: None)
    mixed = [*cells("a"), *cells("b", device="cuda"), *cells("c", device="auto")]
    assert len(list(cluster.run_on_ray(mixed, progress=False, address="10.0.0.1:6379"))) == 3
    assert [asked["num_gpus"] for asked in ray.options] == [0, 1, 1]
    assert {(asked["num_cpus"], asked["max_calls"], asked["max_retries"]) for asked in ray.options} == {(1, 1, 0)}
    assert ray.said["address"] == "10.0.0.1:6379"


def test_no_more_cells_are_given_away_than_were_wanted(ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)

    def work(cell: Any, folder: str) -> str | None:
        together.wait(10)
        return None

    monkeypatch.setattr(cluster, "work", work)
    assert len(list(cluster.run_on_ray(cells(*"abcdef"), progress=False, workers=2))) == 6
    assert ray.most == 2


def test_closing_the_generator_stops_what_runs_and_leaves_the_cluster(
    ray: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    def work(cell: Any, folder: str) -> str | None:
        if cell.name == "slow":
            stop.wait(10)
        return None

    monkeypatch.setattr(cluster, "work", work)
    monkeypatch.setattr(ray, "cancel", lambda task, force: (ray.cancelled.append(task), stop.set()))
    with closing(cluster.run_on_ray(cells("slow", "quick"), progress=False)) as ended:
        assert next(ended)[0].name == "quick" and ray.joined
    assert len(ray.cancelled) == 1 and not ray.joined


def test_a_cluster_that_this_process_has_joined_is_not_left(ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.init()
    monkeypatch.setattr(cluster, "work", lambda cell, folder: None)
    assert len(list(cluster.run_on_ray(cells("a"), progress=False))) == 1
    assert ray.joined


def test_what_is_done_is_not_done_again(ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "work", lambda cell, folder: None)
    done, other = cells("done", "other")
    done.is_done = lambda: True
    assert [cell.name for cell, _ in cluster.run_on_ray([done, other], progress=False)] == ["other"]


@pytest.mark.parametrize("gpus", [0, 2])
def test_cells_that_wait_for_a_gpu_say_so(
    gpus: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    join(monkeypatch, StandIn(gpus))
    monkeypatch.setattr(cluster, "work", lambda cell, folder: None)
    assert len(list(cluster.run_on_ray(cells("a", device="cuda"), progress=None))) == 1
    assert ("no GPU yet" in capsys.readouterr().err) == (gpus == 0)


def test_work_tells_why_a_cell_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolve({"device": "cpu", "data": f"imagefolder:{tmp_path}/none"}, preset="digits-fast-at")
    cell = Cell("cell", tmp_path / "cell", config, (Judgement("best", (), 7),))
    failure = cluster.work(cell, str(tmp_path))
    assert failure is not None and f"{tmp_path}/none" in failure and not failure.startswith("adv-train")
    with RunFolder(tmp_path / "taken").claim(config):
        taken = cluster.work(dataclasses.replace(cell, out=tmp_path / "taken"), str(tmp_path))
    assert taken is not None and taken.startswith("Another process is training")
    missing = cluster.work(cell, str(tmp_path / "elsewhere"))
    assert missing is not None and "No such file or directory" in missing and "must share it" in missing


def test_a_gpu_among_several_is_for_ray_to_choose(ray: StandIn) -> None:
    with pytest.raises(UserError, match="give --device cuda"):
        next(cluster.run_on_ray(cells("a", device="cuda:1"), progress=False))


COMPARE = ["compare", "--methods", "standard", "--data", "digits", "--eps", "0.2", "--device", "cpu", "--epochs", "1"]


def test_without_ray_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refusal(capsys, *COMPARE, "--backend", "ray", "--out", str(tmp_path / "c"))
    assert "pip install 'torch-blo[adv-train,ray]'" in said


def test_a_cluster_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    join(monkeypatch, StandIn(error=ConnectionError("Could not find any running instance\nat all")))
    words = ["--backend", "ray", "--ray-address", "10.0.0.1:1", "--out", str(tmp_path / "c")]
    said = refusal(capsys, *COMPARE, *words)
    assert said.endswith("No Ray cluster answers at 10.0.0.1:1: Could not find any running instance\n")


def test_an_address_without_ray_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path / "c"), "--ray-address", "127.0.0.1:1"]
    assert "--ray-address is for --backend ray" in refusal(capsys, *COMPARE, *words)


def test_compare_runs_its_cells_on_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def on_ray(cells: Any, **settings: Any) -> Iterator[Any]:
        calls.append([*(cell.name for cell in cells), str(settings["workers"]), str(settings["address"])])
        yield from ((cell, "not here") for cell in cells)

    monkeypatch.setattr("adv_train.cli.several.run_on_ray", on_ray)
    words = ["--backend", "ray", "--ray-address", "auto", "--workers", "3", "--seeds", "2"]
    assert main([*COMPARE, *words, "--out", str(tmp_path / "c")]) == 1
    assert calls == [["standard-seed0", "standard-seed1", "3", "auto"]]
    assert "standard-seed1: not here" in capsys.readouterr().err

"""Runs on a real Ray cluster of one machine, one of whose workers is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from adv_train.cli import main

pytest.importorskip("ray", reason="Ray is not installed: it has no wheel for this Python")

COMPARE = ["compare", "--methods", "standard,fast-at", "--data", "digits", "--eps", "0.2", "--device", "cpu"]
COMPARE += ["--epochs", "20", "--train-limit", "200", "--seeds", "1", "--limit", "20", "--pgd-steps", "2"]
COMPARE += ["--pgd-restarts", "1", "--quiet"]


def workers() -> list[int]:
    """Return the processes in which Ray runs cells."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if words.startswith(b"ray::work"):
            found.append(int(entry.name))
    return found


def kill_one(out: Path, before: dict[Path, list[bytes]], ended: threading.Event) -> None:
    """Kill a worker once both runs have two epochs behind them, and note the seconds of all epochs but the last."""
    while not ended.is_set():
        times = {file: file.read_bytes().splitlines()[:-1] for file in out.glob("*/timing.jsonl")}
        running = workers()
        if len(times) == 2 and all(times.values()) and running:
            os.kill(running[0], signal.SIGKILL)
            before.update(times)
            return
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_a_killed_worker_costs_its_cell_an_unfinished_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

    before: dict[Path, list[bytes]] = {}
    ended = threading.Event()
    killer = threading.Thread(target=kill_one, args=(tmp_path / "ray", before, ended))
    killer.start()
    try:
        status = main([*COMPARE, "--backend", "ray", "--out", str(tmp_path / "ray")])
    finally:
        ended.set()
        killer.join()
    assert status == 0, capsys.readouterr().err
    assert len(before) == 2
    for file, lines in before.items():
        assert file.read_bytes().splitlines()[: len(lines)] == lines  # these epochs were not trained again
    assert main([*COMPARE, "--workers", "1", "--out", str(tmp_path / "here")]) == 0
    for run in ("standard-seed0", "fast-at-seed0"):
        there, here = (tmp_path / place / run / "metrics.jsonl" for place in ("ray", "here"))
        assert there.read_bytes() == here.read_bytes()

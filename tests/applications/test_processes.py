"""The processes that train and judge: how many there are, how they end, and the messages about them."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adv_train.attacks import PGD, StandardAutoAttack
from adv_train.cli import processes
from adv_train.comparison import Cell, Judgement
from adv_train.config import resolve
from adv_train.records import RunFolder

# Stands in for the process of a cell, without the seconds that importing PyTorch takes.
SCRIPT = """
import os, pathlib, re, signal, sys, time
name = re.search(rb"<(\\w+)>", sys.stdin.buffer.read()).group(1).decode()
pathlib.Path(name + "-started").touch()
if name == "bad":
    while not pathlib.Path("slow-started").exists():
        time.sleep(0.01)
    sys.exit("adv-train: error: no luck")
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(15 if name.startswith(("slow", "later")) else 0)
pathlib.Path(name + "-ended").write_text(os.environ["OMP_NUM_THREADS"])
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "WORK", SCRIPT)
    monkeypatch.setattr(processes, "_processors", lambda: 2)
    config = resolve({"device": "cpu"}, preset="digits-standard")
    return lambda *names: [Cell(f"<{name}>", tmp_path / name, config, (Judgement("best", (), 7),)) for name in names]


def test_closing_the_generator_stops_what_runs_and_what_waits(made: Any, tmp_path: Path) -> None:
    later = [f"later{number}" for number in range(9)]
    with closing(processes.run_cells(made("bad", "slow", *later), progress=False)) as ended:
        cell, failure = next(ended)
        assert (cell.name, failure) == ("<bad>", "no luck")
    assert (tmp_path / "slow-started").exists() and not list(tmp_path.glob("*-ended"))
    assert len(list(tmp_path.glob("later?"))) < len(later)  # each thread may have taken another one in the meantime


def test_a_cell_that_fails_leaves_the_others_alone(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = made("killed", "quick", "taken")
    with RunFolder(tmp_path / "taken").claim(cells[2].config):
        found = [failure for _, failure in processes.run_cells(cells, progress=None, workers=1)]
    assert found[:2] == ["its process was killed by signal 9", None]
    assert found[2] is not None and found[2].startswith("Another process is training")
    assert (tmp_path / "quick-ended").read_text() == "2"  # the one process has both processors
    assert RunFolder(tmp_path / "quick").config() == cells[1].config
    said = capsys.readouterr().err.splitlines()
    killed, quick = "1 of 3, <killed>: its process was killed by signal 9", "2 of 3, <quick>: trained and evaluated"
    assert said[:2] == [killed, quick]


def test_the_processors_are_shared_out_and_nothing_is_said_where_nobody_wants_it(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [failure for _, failure in processes.run_cells(made("one", "two"), progress=False)] == [None, None]
    assert [(tmp_path / f"{name}-ended").read_text() for name in ("one", "two")] == ["1", "1"]
    assert capsys.readouterr().err == ""


def test_on_an_accelerator_cells_run_one_at_a_time(made: Any, tmp_path: Path) -> None:
    on_a_gpu = [
        dataclasses.replace(cell, config=cell.config.changed({"device": "cuda"})) for cell in made("one", "two")
    ]
    assert len(list(processes.run_cells(on_a_gpu, progress=False))) == 2
    assert (tmp_path / "two-ended").read_text() == "2"


def test_what_is_left_to_do_is_told_in_the_words_of_the_command_line(made: Any, tmp_path: Path) -> None:
    (cell,) = made("run")
    attacks = (PGD(steps=3, restarts=2), StandardAutoAttack())
    judgements = (Judgement("best", attacks, 7), Judgement("last", attacks[:1], 7))
    fit, best, last = dataclasses.replace(cell, judgements=judgements).commands()
    out = str(tmp_path / "run")
    assert fit == ["fit", "--out", out, "--progress"]
    asked = [
        "--limit",
        "7",
        "--attacks",
        "pgd,autoattack",
        "--device",
        "cpu",
        "--pgd-steps",
        "3",
        "--pgd-restarts",
        "2",
    ]
    assert best == ["eval", out, "--checkpoint", "best", *asked, "--progress"]
    assert last[3] == "last" and last[7] == "pgd"


def test_commands_run_in_turn_until_one_fails() -> None:
    words = [["list", "attacks"], ["list", "nothing"], ["list", "data"]]
    cell = pickle.dumps(SimpleNamespace(commands=functools.partial(iter, words)))
    found = subprocess.run([sys.executable, "-c", processes.WORK], input=cell, capture_output=True)
    assert found.returncode == 2 and b"attacks:" in found.stdout and b"data:" not in found.stdout

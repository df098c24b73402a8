"""The processes that train and judge: how many there are, how they end, and the messages about them."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adv_train.attacks import PGD, Square, StandardAutoAttack, TargetedPGD, Transfer
from adv_train.cli import evaluation, processes
from adv_train.cli.waiting import Task, Waiting
from adv_train.cli.worker import MARK, Request
from adv_train.comparison import Cell, Judgement
from adv_train.config import resolve
from adv_train.records import RunFolder

# Stands in for a process that serves one request, without the seconds that importing PyTorch takes.
SCRIPT = """
import os, pathlib, re, signal, sys, time
name = re.search(rb"<(\\w+)>", os.read(0, 2**16)).group(1).decode()
pathlib.Path(name + "-started").touch()
if name == "bad":
    while not pathlib.Path("slow-started").exists():
        time.sleep(0.01)
    sys.exit("adv-train: error: no luck")
if name.startswith("killed"):
    times = pathlib.Path(name + "-times")
    times.touch()
    times.write_text(times.read_text() + "x")
    if len(times.read_text()) <= int(name[-1]):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells ignore it in background processes
        os.kill(os.getpid(), signal.SIGINT if name.startswith("killedbyctrlc") else signal.SIGKILL)
time.sleep(15 if name.startswith(("slow", "later")) else 0)
pathlib.Path(name + "-ended").write_text(os.environ["OMP_NUM_THREADS"])
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "WORK", SCRIPT)
    monkeypatch.setattr(processes, "_processors", lambda: 2)
    config = resolve({"device": "cpu"}, preset="digits-standard")
    return lambda *names: [
        Cell(f"<{name}>", tmp_path / f"<{name}>", config, (Judgement("best", (), 7),)) for name in names
    ]


def test_closing_the_generator_stops_what_runs_and_what_waits(made: Any, tmp_path: Path) -> None:
    later = [f"later{number}" for number in range(9)]
    with closing(processes.run_cells(made("bad", "slow", *later), progress=False)) as ended:
        cell, failure = next(ended)
        assert (cell.name, failure) == ("<bad>", "no luck")
    assert (tmp_path / "slow-started").exists() and not list(tmp_path.glob("*-ended"))
    assert len(list(tmp_path.glob("<later?>"))) < len(later)  # each thread may have taken another one in the meantime


def test_a_cell_that_fails_leaves_the_others_alone(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = made("killed9", "quick", "taken")
    with RunFolder(tmp_path / "<taken>").claim(cells[2].config):
        found = [failure for _, failure in processes.run_cells(cells, progress=None, workers=1)]
    assert found[:2] == ["its process was killed by signal 9", None]
    assert found[2] is not None and found[2].startswith("Another process is training")
    assert (tmp_path / "quick-ended").read_text() == "2"  # the one process has both processors
    assert RunFolder(tmp_path / "<quick>").config() == cells[1].config
    said = capsys.readouterr().err.splitlines()
    killed, quick = "1 of 3, <killed9>: its process was killed by signal 9", "2 of 3, <quick>: trained and evaluated"
    again = "<killed9>: its process was killed by signal 9; it resumes after its last finished epoch."
    assert said[:4] == [again, again, killed, quick]


def test_a_command_whose_process_is_killed_starts_again_at_most_twice(made: Any, tmp_path: Path) -> None:
    """Each cell has two commands: it trains, then it evaluates."""
    cells = made("killed1", "killed2", "killed3", "killedbyctrlc1")
    found = {cell.name: failure for cell, failure in processes.run_cells(cells, progress=False)}
    assert found["<killed1>"] is None and found["<killed2>"] is None
    assert found["<killed3>"] == "its process was killed by signal 9"
    assert found["<killedbyctrlc1>"] is not None  # the user has interrupted it
    assert [len((tmp_path / f"{cell.name[1:-1]}-times").read_text()) for cell in cells] == [3, 4, 3, 1]


def test_a_process_serves_the_next_request_when_one_has_ended(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a command failed or was killed; its restart comes before the next cell."""
    script = f"""
import os, re, sys
while cells := re.findall(rb"<(\\w+)>", os.read(0, 2**16)):
    with open("served", "a") as file:
        print(os.getpid(), cells[0].decode(), file=file)
    status = {{b"bad": 2, b"killed": -9}}.get(cells[0], 0)
    sys.stderr.write(f"a bar\\radv-train: error: no luck" if status == 2 else "")
    print("", {MARK!r} + str(status), sep="\\n", file=sys.stderr, flush=True)
"""
    monkeypatch.setattr(processes, "WORK", script)
    cells = made("one", "bad", "killed", "two")
    found = [failure for _, failure in processes.run_cells(cells, progress=False, workers=1)]
    assert found == [None, "no luck", "its process was killed by signal 9", None]
    pids, names = zip(*map(str.split, (tmp_path / "served").read_text().splitlines()), strict=True)
    assert names == ("one", "one", "bad", "killed", "killed", "killed", "two", "two") and len(set(pids)) == 1


@pytest.mark.parametrize("fault", ["popen", "claim", "deaf", "deaf and dumb"])
def test_a_fault_of_the_system_fails_one_cell(
    fault: str, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = made("bad", "good")
    real_popen, real_claim, real_dumps = subprocess.Popen, RunFolder.claim, pickle.dumps
    broken = [True]

    def popen(words: list[str], **options: Any) -> Any:
        if broken.pop() if broken else False:
            if fault == "popen":
                raise OSError(11, "Resource temporarily unavailable")
            words = [
                *words[:-1],
                "import sys; sys.stdin.close(); sys.exit(" + ("0)" if "dumb" in fault else "'no luck')"),
            ]
        return real_popen(words, **options)

    def claim(run: RunFolder, config: Any) -> Any:
        if run.path == bad.out:
            raise PermissionError(13, "Permission denied")
        return real_claim(run, config)

    if fault == "claim":
        monkeypatch.setattr(RunFolder, "claim", claim)
    else:
        monkeypatch.setattr(processes.subprocess, "Popen", popen)
    # More than a pipe holds: otherwise it would depend on the time whether the process has ended before.
    monkeypatch.setattr(
        processes.pickle,
        "dumps",
        lambda request: real_dumps(request) + b"x" * (10**6 if str(bad.out) in str(request) else 0),
    )
    found = {cell.name: failure for cell, failure in processes.run_cells([bad, good], progress=False, workers=1)}
    assert found["<good>"] is None
    reason = {
        "popen": "Resource temporarily unavailable",
        "claim": "Permission denied",
        "deaf": "no luck",
        "deaf and dumb": "its process ended without reading what to do",
    }[fault]
    assert reason in str(found["<bad>"])


def test_the_processors_are_shared_out_and_nothing_is_said_where_nobody_wants_it(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [failure for _, failure in processes.run_cells(made("one", "two"), progress=False)] == [None, None]
    assert [(tmp_path / f"{name}-ended").read_text() for name in ("one", "two")] == ["1", "1"]
    assert capsys.readouterr().err == ""


def test_on_an_accelerator_cells_run_one_at_a_time_and_all_commands_of_one_in_one_process(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Request] = []
    real_dumps = pickle.dumps
    monkeypatch.setattr(processes.pickle, "dumps", lambda request: (requests.append(request), real_dumps(request))[1])
    on_a_gpu = [
        dataclasses.replace(cell, config=cell.config.changed({"device": "cuda"})) for cell in made("one", "two")
    ]
    assert len(list(processes.run_cells(on_a_gpu, progress=False))) == 2
    assert (tmp_path / "two-ended").read_text() == "2"
    assert not any(fork for _, fork in requests)
    assert [words[0] for words in requests[0].commands] == ["fit", "eval"]


def test_what_is_left_to_do_is_told_in_the_words_of_the_command_line(made: Any, tmp_path: Path) -> None:
    (cell,) = made("run")
    attacks = (PGD(steps=3, restarts=2), StandardAutoAttack())
    judgements = (Judgement("best", attacks, 7), Judgement("last", attacks[:1], 7))
    fit, best, last = dataclasses.replace(cell, judgements=judgements).commands()
    out = str(cell.out)
    assert fit == ["fit", "--out", out, "--progress"]
    asked = ["--limit", "7", "--attacks", "pgd(steps=3, restarts=2),autoattack", "--device", "cpu"]
    assert best == ["eval", out, "--checkpoint", "best", *asked, "--progress"]
    assert last[3] == "last" and last[7] == "pgd(steps=3, restarts=2)"


@pytest.mark.parametrize(
    "attacks",
    [
        (PGD(),),
        (PGD(step=0.01),),
        (PGD(7, 2, 8 / 255), Square(queries=10), StandardAutoAttack()),
        (Transfer(source="runs/other (2)"), TargetedPGD(targets=None, steps=3)),
    ],
    ids=["defaults", "step", "several", "transfer"],
)
def test_the_command_evaluates_with_the_attacks_of_the_plan(made: Any, tmp_path: Path, attacks: Any) -> None:
    (cell,) = made("run")
    words = Judgement("best", attacks, 7).command(cell.config, tmp_path)
    asked = evaluation._attacks(evaluation.read(words[1:]))
    assert [(type(attack), attack.chosen()) for attack in asked] == [(type(a), a.chosen()) for a in attacks]


def served(*requests: Request) -> subprocess.CompletedProcess[bytes]:
    """What one process writes that gets these requests."""
    sent = b"".join(map(pickle.dumps, requests))
    words = [sys.executable, "-c", processes.WORK]
    return subprocess.run(words, input=sent, capture_output=True, timeout=120, preexec_fn=_heed_ctrl_c)


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells ignore it in background processes


def request(*words: str, fork: bool = True) -> Request:
    return Request([text.split() for text in words], fork)


def test_a_process_serves_one_request_after_another_until_a_command_of_each_fails() -> None:
    found = served(request("list attacks", "list nothing", "list data"), request("list data"))
    assert found.returncode == 0 and found.stdout.count(b"attacks:") == found.stdout.count(b"data:") == 1
    marks = [line for line in found.stderr.decode().splitlines() if line.startswith(MARK)]
    assert marks == [f"{MARK}2", f"{MARK}0"]


def test_a_process_that_may_need_a_gpu_does_not_fork() -> None:
    bad = request("list attacks", "list nothing", "list data", fork=False)
    found = served(request("list methods"), bad, request("list data"))
    assert found.returncode == 2 and b"attacks:" in found.stdout and b"data:" not in found.stdout
    assert found.stderr.count(MARK.encode()) == 1 and b"methods:" in found.stdout


@pytest.mark.parametrize("fork", [True, False])
def test_ctrl_c_ends_a_command_also_after_another_one(fork: bool, importable: None, tmp_path: Path) -> None:
    found = served(request("list data"), Request(Dying(signal.SIGINT, tmp_path / "pid"), fork))
    assert (tmp_path / "pid").exists() and b"KeyboardInterrupt" in found.stderr


class Dying(list[list[str]]):
    """Commands: the process that runs them gets a signal, or waits for the end of the one that serves."""

    def __init__(self, number: int, file: Path) -> None:
        self.number, self.file = number, file

    def __reduce__(self) -> Any:
        return Dying, (self.number, self.file)

    def __iter__(self) -> Any:
        self.file.write_text(str(os.getpid()))
        if self.number:
            os.kill(os.getpid(), self.number)
        while True:
            time.sleep(0.05)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other processes import this file, whose classes they unpickle."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_is_killed_leaves_the_process_that_serves(number: int, importable: None, tmp_path: Path) -> None:
    found = served(Request(Dying(number, tmp_path / "pid"), True), request("list data"))
    assert found.returncode == 0
    marks = [line for line in found.stderr.decode().splitlines() if line.startswith(MARK)]
    assert marks == [f"{MARK}{-number}", f"{MARK}0"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_ends_with_the_process_that_serves(number: int, importable: None, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", processes.WORK], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(Request(Dying(0, pid), True)))
        process.stdin.flush()
        wait_until(lambda: pid.exists() and pid.read_text() != "")
        process.send_signal(number)
    wait_until(lambda: not Path("/proc", pid.read_text()).exists())


def wait_until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


class Made:
    """A cell of which these commands remain."""

    def __init__(self, *commands: str) -> None:
        self.name, self._commands = commands[0], commands

    def commands(self) -> Iterator[list[str]]:
        return iter([text.split() for text in self._commands])


def taken(waiting: Waiting, trained: bool) -> str:
    task = waiting.take(trained=trained)
    return "nothing" if task is None else f"{task.cell.name}: {task.words[0]}"


def test_some_processes_prefer_to_evaluate_and_the_others_to_train() -> None:
    cells: list[Any] = [Made("fit a", "eval a"), Made("eval b"), Made("fit c")]
    waiting = Waiting([Task(cell) for cell in cells])
    assert [taken(waiting, True) for _ in range(2)] == ["eval b: eval", "fit a: fit"]
    back = Task(cells[0])
    assert back.advance() and not Task(cells[1]).advance()
    waiting.put_back(back)
    assert [taken(waiting, False) for _ in range(2)] == ["fit c: fit", "fit a: eval"]
    for _ in cells[1:]:
        waiting.end()
    with ThreadPoolExecutor() as pool:  # It waits for the last task, which another process has taken.
        last = pool.submit(taken, waiting, False)
        with pytest.raises(TimeoutError):
            last.result(0.1)
        waiting.put_back(back)
        assert last.result(10) == "fit a: eval"
        last = pool.submit(taken, waiting, False)
        waiting.end()
        assert last.result(10) == "nothing"

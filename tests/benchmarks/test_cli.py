"""The command line of the benchmarks: what it refuses, what it prints, what it records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import cli, registry
from benchmarks.markdown import render
from benchmarks.registry import Benchmark, Goal, Outcome, Setting, Table, benchmark


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a benchmark that works and one that fails in the place of all others."""

    def works(setting: Setting) -> Outcome:
        return Outcome([Table("figures", ["name", "value"], [["a", 1.23456], ["b", None]])], [Goal("a", math.nan, 2.0)])

    def fails(setting: Setting) -> Outcome:
        raise RuntimeError("on purpose")

    found = {"works": Benchmark("works", "it works", works), "fails": Benchmark("fails", "it fails", fails)}
    monkeypatch.setattr(cli, "discover", lambda: found)


@pytest.mark.usefixtures("two")
def test_a_run_prints_tables_and_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "record.json"
    assert cli.main(["works", "--out", str(out), "--seed", "7", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "| a    | 1.235 |" in printed
    assert "| b    | –     |" in printed
    assert "MISSED: a: nan" in printed  # a NaN reaches no goal
    record = json.loads(out.read_text(encoding="utf-8"))
    assert (record["settings"]["seed"], record["settings"]["dtype"]) == (7, "float32")
    assert record["versions"]["torch"]
    assert record["benchmarks"]["works"]["goals"][0]["found"] == "nan"
    assert record["benchmarks"]["works"]["tables"][0]["rows"] == [["a", 1.23456], ["b", None]]


@pytest.mark.usefixtures("two")
def test_a_benchmark_that_fails_is_recorded_and_does_not_stop_the_others(tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    assert cli.main(["fails", "works", "--out", str(out)]) == 1
    entries = json.loads(out.read_text(encoding="utf-8"))["benchmarks"]
    assert entries["fails"] == {"error": "RuntimeError: on purpose"}
    assert "tables" in entries["works"]


@pytest.mark.usefixtures("two")
def test_a_run_can_be_resumed_with_the_same_code_and_settings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "record.json"
    resume = ["--out", str(out), "--resume"]
    assert cli.main(["works", "fails", *resume]) == 1
    first = json.loads(out.read_text(encoding="utf-8"))
    assert cli.main([*resume]) == 1
    assert "[1/1] fails" in capsys.readouterr().err
    assert json.loads(out.read_text(encoding="utf-8")) == first
    cli.main([*resume, "--seed", "1"])
    printed = capsys.readouterr().err
    assert "other code, settings or versions" in printed and "[1/2] works" in printed
    cli.main([*resume, "--seed", "1"])
    monkeypatch.setattr("benchmarks.record._commit", lambda: "another")
    assert "[1/1] fails" in capsys.readouterr().err
    cli.main([*resume, "--seed", "1"])
    assert "[1/2] works" in capsys.readouterr().err


@pytest.mark.usefixtures("two")
def test_an_unknown_name_is_refused_with_the_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["work"]) == 2
    assert "no benchmark is called work; there are: works, fails" in capsys.readouterr().err


def test_two_benchmarks_cannot_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FOUND", {})

    def first(setting: Setting) -> Outcome:
        return Outcome([])

    def second(setting: Setting) -> Outcome:
        return Outcome([])

    second.__module__ = "elsewhere"
    benchmark("shared-in-a-test", "first")(first)
    with pytest.raises(ValueError, match="shared-in-a-test"):
        benchmark("shared-in-a-test", "second")(second)


def test_a_goal_says_which_way_it_goes() -> None:
    assert Goal("fast", 1.1, 1.2).met
    assert not Goal("fast", 1.3, 1.2).met
    assert Goal("many", 60.0, 50.0, at_least=True).met
    assert not Goal("many", 40.0, 50.0, at_least=True).met
    assert "at least 50" in render("x", Outcome([], [Goal("many", 60.0, 50.0, at_least=True)]))

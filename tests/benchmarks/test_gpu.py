"""The stages for a GPU, end to end on the CPU at toy size: what they record, what they skip, how they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import cli, right
from benchmarks.gpu.catalogue import cases
from benchmarks.gpu.stages import Clock, Stage

CPU = torch.device("cpu")


def run(folder: Path, *words: str) -> dict[str, Any]:
    """Run stages at toy size and return the records by stage."""
    common = ["--device", "cpu", "--quick", "--out", str(folder), "--runs", str(folder / "runs"), "--workers", "1"]
    assert cli.main([*common, *words]) == 0
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("gpu-*.json"))}


def test_every_stage_writes_its_record_and_a_second_call_repeats_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path, "--data", "digits")
    printed = capsys.readouterr()
    assert set(found) == {"gpu-right", "gpu-fast", "gpu-true"}
    assert all("failure" not in row for record in found.values() for row in record["rows"].values())
    assert all(row.get("met", True) for row in found["gpu-right"]["rows"].values())
    (steps,) = (row for row in found["gpu-fast"]["rows"].values() if "methods" in row)
    assert {row["name"] for row in steps["methods"]} >= {"fast-at", "fast-bat"}
    (trained,) = found["gpu-true"]["rows"].values()
    assert trained["n"] == 20 and trained["epochs"] == len(trained["metrics"]) == 1
    assert (trained["config"]["precision"], trained["config"]["channels_last"]) == ("bf16", True)
    for record in found.values():
        assert {row["torch"] for row in record["rows"].values()} == {record["versions"]["torch"]}
    for heading in ("## Right", "## Fast", "## True", "fast-at, 8/255"):
        assert heading in printed.out
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("gpu-*.json")}
    run(tmp_path, "--stages", "right", "fast")
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("gpu-*.json")} == before


def test_a_stage_that_is_out_of_time_does_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "--minutes", "0", "--data", "digits") == {}


def test_a_row_that_failed_is_recorded_and_tried_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "gpu-x.json", Clock(60)

    def fails() -> dict[str, Any]:
        raise RuntimeError("on purpose")

    stage = Stage(path, CPU, quick=True)
    stage.do("a", clock, fails)
    assert json.loads(path.read_text(encoding="utf-8"))["rows"]["a"]["failure"] == "RuntimeError: on purpose"
    again = Stage(path, CPU, quick=True)
    again.do("a", clock, lambda: {"value": 1.0})
    again.do("a", clock, fails)
    assert Stage(path, CPU, quick=True).rows["a"]["value"] == 1.0
    assert not Stage(path, CPU, quick=False).rows


def test_an_error_of_the_device_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = right.hypergradient, []

    def dishonest(*arguments: Any) -> Any:
        calls.append(arguments)
        z, grad = honest(*arguments)
        return z, grad * (1 + 1e-3 * (len(calls) % 2 == 0))  # every second call is that on the device

    monkeypatch.setattr(right, "hypergradient", dishonest)
    found = run(tmp_path, "--stages", "right")["gpu-right"]["rows"]
    wrong = [row["met"] for name, row in found.items() if name.startswith("float64: ") and "single" in name]
    assert wrong and not any(wrong)


def test_every_term_solver_and_strategy_of_the_catalogue_has_a_case_of_each_shape() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names))
    assert sum(name.endswith("single") for name in names) == sum(name.endswith("lanes") for name in names)


def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main([]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_training_without_images_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--stages", "true")
    assert "imagefolder:PATH" in capsys.readouterr().err

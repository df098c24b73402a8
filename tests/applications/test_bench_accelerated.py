"""The benchmark compares accelerated steps with eager ones, and leaves out methods that cannot be accelerated."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from adv_train.cli.entry import main

WORDS = ["bench", "--model", "small-cnn", "--image-size", "16", "--batch-size", "4", "--repeats", "1", "--quiet"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_steps_are_timed_beside_eager_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    out = tmp_path / "bench.json"
    words = ["--device", "cpu", "--accelerate", "compile", "--methods", "fast-bat", "--out", str(out)]
    assert main([*WORDS, *words]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    found = {row["name"]: (row["over_eager"], row["prepare_seconds"]) for row in record["rows"]}
    without = "fast-bat"  # which differentiates twice
    assert found.pop(without) == (None, None)
    assert set(found) == {"standard", "fast-bat, no IG", "fast-bat, shifted", "fast-bat, shifted, 1 step"}
    assert all(ratio > 0 and seconds > 0 for ratio, seconds in found.values())
    assert "accelerated over eager" in capsys.readouterr().out
    assert (record["settings"]["accelerate"], record["settings"]["only"]) == ("compile", ["fast-bat"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cpu", "--accelerate", "graph"], "needs a CUDA device"),
        (["--methods", "fast-ta"], "fast-at"),
        (["--accelerate", "quick"], "compile"),
    ],
    ids=["graph", "method", "choice"],
)
def test_what_cannot_be_measured_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *words]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) <= 2

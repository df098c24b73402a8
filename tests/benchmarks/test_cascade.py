"""The benchmark of the cascade: what it counts, and that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from adv_train.attacks import PGD, Square
from adv_train.threat import Threat
from benchmarks import cascade


def test_passes_are_counted_as_the_steps_of_the_attacks_say() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4))
    x = torch.rand(10, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    threat = Threat("linf", 1e-4)
    found = cascade.timed(model, x, y, threat, "pgd(steps=3, restarts=2)", batch_size=5)
    # Seven images are right, in two batches of five: the clean pass, and for each start three steps and the last look.
    assert (found.passes, found.image_passes, found.image_gradients) == (2 + 2 * 2 * 4, 10 + 2 * 4 * 7, 2 * 3 * 7)
    assert torch.equal(found.robust, PGD(3, 2)(model, x, y, threat, seed=0).robust) and found.cpu_seconds > 0
    search = cascade.timed(model, x, y, threat, "square(queries=40)", batch_size=16)
    assert search.image_gradients == 0 and 40 <= search.passes <= 60
    assert torch.equal(search.robust, Square(queries=40)(model, x, y, threat, seed=0, batch_size=16).robust)


def test_it_trains_judges_and_takes_the_model_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path / "run"), "--epochs", "1", "--images", "12", "--repeat", "2"]
    words += ["--attack", "pgd(steps=2, restarts=1)", "--attack", "square(queries=5)"]
    assert cascade.main(words) == 0
    first = capsys.readouterr().out
    assert "| pgd(steps=2, restarts=1) |" in first and "24 images, linf, eps 0.1" in first
    trained = (tmp_path / "run" / "best.pt").read_bytes()
    record = tmp_path / "cascade.json"
    for _ in range(2):  # The second time replaces the entry of the first.
        assert cascade.main([*words, "--judged-at", "0.2", "--record", str(record)]) == 0
    assert cascade.main([*words, "--record", str(record)]) == 0
    other, here = json.loads(record.read_text())["entries"]
    assert (other["trained_at"], other["judged_at"], here["judged_at"], here["images"]) == (0.1, 0.2, 0.1, 24)
    pgd, square = here["attacks"].values()
    row = next(line for line in first.splitlines() if line.startswith("| pgd(")).split("|")
    assert f"{100 * pgd['robust'] / 24:.2f}" == row[2].strip() and str(pgd["image_passes"]) == row[8].strip()
    assert pgd["broken_only_here"] == 0 and square["robust"] - pgd["robust"] == (
        square["robust_only_here"] - square["broken_only_here"]
    )
    assert "linf, eps 0.2" in capsys.readouterr().out and (tmp_path / "run" / "best.pt").read_bytes() == trained

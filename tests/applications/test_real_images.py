"""The published network and method on real images: one epoch, end to end."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import adv_train
from adv_train.cli import main
from tests.applications.image_files import write_digit_photos
from tests.applications.real_images import write_real_images


def test_an_epoch_on_pictures_of_every_format(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_digit_photos(images, train=8, test=2, side=16)
    run = tmp_path / "run"
    command = ["fit", "--data", f"imagefolder:{images}", "--method", "fast-bat", "--eps", "8/255", "--epochs", "1"]
    assert main([*command, "--model", "small-cnn", "--batch-size", "32", "--out", str(run), "--quiet"]) == 0
    (record,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert math.isfinite(record["loss"])
    assert 0 < record["implicit_share"] < 1
    assert main(["eval", str(run), "--no-autoattack", "--pgd-steps", "2", "--pgd-restarts", "1", "--quiet"]) == 0
    assert json.loads((run / "eval.json").read_text())["n"] == 20


def test_what_fit_says_to_run_next_judges_a_model_of_few_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    write_digit_photos(images, train=8, test=2, side=8)
    for folder in images.glob("*/[3-9]"):
        shutil.rmtree(folder)
    words = ["--method", "fast-at", "--model", "small-cnn", "--epochs", "1", "--out", str(run), "--quiet"]
    assert main(["fit", "--data", f"imagefolder:{images}", *words]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"Next: adv-train eval {run} --no-autoattack"
    assert main([*said.split()[2:], "--pgd-steps", "1", "--quiet"]) == 0
    assert json.loads((run / "eval.json").read_text())["n"] == 6


def test_an_epoch_of_fast_bat_on_256_real_images_with_the_published_network(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_real_images(images, train=30, test=2)
    run = tmp_path / "run"
    command = ["fit", "--data", f"imagefolder:{images}", "--method", "fast-bat", "--eps", "8/255", "--epochs", "1"]
    assert main([*command, "--train-limit", "256", "--out", str(run), "--quiet"]) == 0
    (record,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert math.isfinite(record["loss"])
    assert 0 < record["implicit_share"] < 1
    model = adv_train.load_model(run, checkpoint="last")
    assert sum(p.numel() for p in model.parameters()) == 11_172_170
    with torch.no_grad():
        assert model(torch.rand(2, 3, 32, 32)).isfinite().all()

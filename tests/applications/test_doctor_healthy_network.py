"""The doctor finds nothing wrong with a convolutional network with BatchNorm, trained by Fast-AT on real images."""

from __future__ import annotations

from pathlib import Path

import pytest

import adv_train
from adv_train import evaluation
from adv_train.cli import main
from adv_train.doctor import CHECKS
from adv_train.doctor.significance import exceeds
from tests.applications.real_images import ARCHIVE, write_real_images

NETWORK = """
from torch import nn
def network(channels, classes):
    def block(before, after):
        return nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    layers = (*block(channels, 16), *block(16, 32), *block(32, 64))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
"""


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"{ARCHIVE.name} is not beside the repository")
def test_a_convolutional_network_with_batchnorm_is_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("batchnorm_nets.py").write_text(NETWORK)
    write_real_images(Path("images"), train=40, test=20)
    adv_train.fit(
        out="run",
        progress=False,
        data="imagefolder:images",
        model="batchnorm_nets:network",
        method="fast-at",
        eps=4 / 255,
        epochs=10,
        batch_size=40,
        lr=0.05,
        device="cpu",
    )
    words = ["--attacks", "pgd(steps=20),square(queries=200)", "--pgd-restarts", "1", "--device", "cpu", "--quiet"]
    assert main(["eval", "run", *words]) == 0
    (record,) = evaluation.records_of(Path("run"))
    assert exceeds(int(record.clean.sum()), record.n, 0.1)  # better than chance: 10 classes
    assert record.attacks["pgd"].robust.sum() >= 20  # enough images for the checks that start from PGD
    found = adv_train.doctor("run")
    assert list(found.findings) == CHECKS.names()
    # Every check applies to this run, and it has nothing that a check should doubt.
    assert {name: seen.verdict for name, seen in found.findings.items()} == dict.fromkeys(CHECKS.names(), "well"), found

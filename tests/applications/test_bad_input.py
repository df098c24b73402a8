"""What a user can get wrong on the command line: one clear line, exit status 2, nothing overwritten."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from adv_train.cli import main
from tests.applications.test_checkpoint import Hostile

DIGITS = ["--data", "digits", "--method", "fast-at"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that is to be refused, and return the one line it says."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("adv-train: error: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "digits", "--method", "fast-bta"], "`fast-bat`"),
        (["--data", "digist", "--method", "fast-bat"], "`digits`"),
        ([*DIGITS, "--model", "small-cn"], "`small-cnn`"),
        ([*DIGITS, "--device", "cud"], "`cuda`"),
        (["--preset", "cifar10-8-fastbat"], "`cifar10-8-fast-bat`"),
        ([*DIGITS, "--eps", "eight"], "8/255"),
        ([*DIGITS, "--eps", "-1/255"], "eps"),
        ([*DIGITS, "--eps", "256/255"], "eps"),
        ([*DIGITS, "--eps", "1/0"], "eps"),
        ([*DIGITS, "--eps", "nan"], "eps"),
        ([*DIGITS, "--epochs", "0"], "epochs"),
        ([*DIGITS, "--seed", "1e30"], "`seed` must be a whole number of at most 18446744073709551615"),
        ([*DIGITS, "--seed", str(2**64)], "`seed` must be a whole number of at most"),
        ([*DIGITS, "--batch-size", "1e30"], "`batch_size` must be a whole number of at most"),
        ([*DIGITS, "--epochs", "1.5"], "epochs"),
        ([*DIGITS, "--curvature", "3"], "has no option `curvature` (but fast-bat has); it has start, "),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--method", "fast-at"], "--data"),
        (["--data", "imagefolder:missing", "--method", "fast-at"], "missing"),
        ([*DIGITS, "--no-such-flag"], "--no-such-flag"),
    ],
)
def test_a_word_that_is_wrong_is_named(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refusal(capsys, "fit", *words, "--out", "run")
    assert not Path("run").exists()


def test_checkpoints_that_are_no_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *DIGITS, "--epochs", "1", "--train-limit", "20", "--out", "run", "--quiet"]) == 0
    best = Path("run/best.pt")
    whole = best.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nonsense", pickle.dumps(Hostile(Path("ran")))):
        best.write_bytes(content)
        assert "best.pt" in refusal(capsys, "eval", "run")
        assert best.read_bytes() == content
    assert not Path("ran").exists()
    assert "missing" in refusal(capsys, "eval", "missing")


def test_an_output_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("kept")
    assert "file" in refusal(capsys, "fit", *DIGITS, "--epochs", "1", "--out", "file/run")
    assert Path("file").read_text() == "kept"


def test_a_loss_that_is_not_finite_stops_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", *DIGITS, "--epochs", "2", "--train-limit", "200", "--lr", "1e12", "--out", "run", "--quiet"]
    assert main(words) == 1
    assert "diverged" in capsys.readouterr().err
    assert not Path("run/last.pt").exists()

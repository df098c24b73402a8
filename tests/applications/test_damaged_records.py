"""Records that are damaged in any way: one line that names the file, and never a traceback or a wrong figure."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adv_train.archives import load_arrays
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation, Examples, Outcome, read_all, write
from adv_train.evaluation.images import holds_images_of
from adv_train.evaluation.packed import pack, read_file
from adv_train.records import RunFolder
from adv_train.report.drawn import drawn_landscape
from adv_train.threat import Threat
from tests.applications.test_bad_input import refusal
from tests.applications.test_plots import made, record

LINES = {
    "metrics.jsonl": [b"{", b"[]", b"5", b"null", b'"x"', b"{}", b"\xff\xfe", b'{"epoch": 1}', b'{"epoch": 1}\n\n'],
    "timing.jsonl": [b"{", b"[]", b"{}", b"\xff\xfe", b'{"epoch": 1}', b'{"epoch": 1, "train_seconds": "2"}'],
}
WRONG: list[dict[str, Any]] = [{"epoch": "1"}, {"epoch": 1.5}, {"epoch": True}, {"val_ra": None}, {"val_sa": "0.3"}]


@pytest.mark.parametrize("name", list(LINES))
def test_a_damaged_history_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    run = RunFolder(made(tmp_path / "run"))
    read: Callable[[], Any] = run.metrics if name == "metrics.jsonl" else run.timing
    good = json.dumps(record(1, 0.3) | {"train_seconds": 1}).encode() + b"\n"
    wrong = [json.dumps(record(2, 0.3) | change).encode() for change in WRONG] if name == "metrics.jsonl" else []
    for content in [*LINES[name], *wrong]:
        (run.path / name).write_bytes(good + content + b"\n")
        with pytest.raises(UserError, match=f"{name}` is (damaged|not JSON|not a record of an epoch)") as error:
            read()
        assert "\n" not in str(error.value)
    (run.path / name).write_bytes(good)
    assert len(read()) == 1


@pytest.mark.parametrize("words", [["plot", "curves"], ["plot", "alignment"], ["doctor"], ["eval"]])
def test_every_command_tells_it(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run")
    (run / "metrics.jsonl").write_text("[]\n")
    # Without a checkpoint, `doctor` and `eval` name that first.
    told = "best.pt" if words[0] in ("doctor", "eval") else "Line 1 of"
    assert told in refusal(capsys, *words, str(run))


def judged() -> Evaluation:
    generator = np.random.default_rng(0)
    n, pixels = 40, generator.random((3, 1, 4, 4), dtype=np.float32)
    clean, robust = generator.random(n) < 0.8, generator.random(n) < 0.5
    labels, three = generator.integers(0, 4, n), np.arange(3)
    outcome = Outcome(robust & clean, labels, {"steps": 2, "restarts": 1}, ("Doubtful.",), robust & clean)
    about = {"checkpoint": "best.pt", "epoch": 2, "data": "digits"}
    shown = Examples(pixels, pixels, three, three, three)
    return Evaluation(Threat("linf", 0.1), 0, clean, {"pgd": outcome}, labels, labels, shown, about=about, of=360)


def test_a_flipped_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path, whole, truth = tmp_path / "x.npz", pack(judged()), judged().summary()
    generator, found = np.random.default_rng(1), 0
    for place in generator.integers(0, len(whole), 250):
        changed = bytearray(whole)
        changed[place] ^= int(generator.integers(1, 256))
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # zipfile's, of a name that is there twice
            assert holds_images_of(path, "other") is False
            try:
                assert read_file(path).summary() == truth
            except UserError as error:
                found += "damaged" in str(error) and "\n" not in str(error)
    assert found > 100  # the rest lies in parts of headers that nothing reads


def changed(path: Path, **arrays: Any) -> None:
    """Replace arrays of a record; None removes one."""
    found: dict[str, Any] = load_arrays(path) | arrays
    archive = io.BytesIO()
    np.savez(archive, **{name: array for name, array in found.items() if array is not None})
    path.write_bytes(archive.getvalue())


ARRAYS: dict[str, dict[str, Any]] = {
    "no samples": {"clean": np.zeros(0, np.bool_)},
    "flags that are fractions": {"clean": np.full(40, 0.5)},
    "flags in two columns": {"pgd": np.zeros((40, 2), np.bool_)},
    "too few verdicts": {"pgd": np.zeros(39, np.bool_)},
    "no verdicts": {"pgd": None},
    "too few verdicts after rounding": {"rounded_pgd": np.zeros(3, np.bool_)},
    "too few labels": {"labels": np.zeros(3, np.int64)},
    "labels that are fractions": {"labels": np.full(40, 0.5)},
    "too few predictions": {"predicted_pgd": np.zeros(3, np.int64)},
    "too few files": {"files": np.array(["a", "b"])},
    "too few examples": {"example_label": np.zeros(1, np.int64)},
    "an example that is no image": {"example_clean": np.zeros((3, 4), np.float32)},
    "no examples after the attack": {"example_after": None},
}
CONTENT: dict[str, dict[str, Any]] = {
    "no description": {"about": None},
    "an epoch that is a word": {"about": {"epoch": "two"}},
    "settings that are a list": {"attacks": [{"name": "pgd", "settings": [1], "warnings": []}]},
    "attacks that are a number": {"attacks": 3},
    "a norm that does not exist": {"threat": {"norm": "l7", "eps": 0.1, "low": 0, "high": 1}},
    "a seed that is a word": {"seed": "one"},
    "a size that is a word": {"of": "many"},
}


@pytest.mark.parametrize("case", [*ARRAYS, *CONTENT])
def test_a_record_that_does_not_fit_together_is_damaged(case: str, tmp_path: Path) -> None:
    path = write(judged(), tmp_path)
    arrays = ARRAYS.get(case, {})
    if case in CONTENT:
        told = json.loads(str(load_arrays(path)["record"])) | CONTENT[case]
        arrays = {"record": np.array(json.dumps(told))}
    changed(path, **arrays)
    with pytest.raises(UserError, match=r"damaged .*: delete it or evaluate again"):
        read_all(tmp_path)


def test_a_landscape_whose_numbers_are_no_table_is_drawn_again(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    (run / "plots").mkdir()
    (run / "plots" / "landscape.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for content in (b'run,loss\n"' + b"x" * 200_000 + b'"\n', b"\x00", b"\xff"):
        (run / "plots" / "landscape.csv").write_bytes(content)
        assert drawn_landscape(RunFolder(run), {}) is None

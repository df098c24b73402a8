"""Checkpoints: what was saved comes back, nothing in a file is run, and a failed save leaves the old one."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adv_train import checkpoint, files
from adv_train.checkpoint import Checkpoint
from adv_train.config import RunConfig
from adv_train.errors import UserError

CONFIG = RunConfig.of(
    {"data": "digits", "method": "fast-at", "model": "small-cnn", "eps": 0.2, "epochs": 3, "batch_size": 64, "lr": 0.1}
)


def make(epoch: int = 2) -> Checkpoint:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return Checkpoint(
        config=CONFIG,
        model_arguments={"channels": 1, "classes": 10, "image_size": 8, "mean": [0.3], "std": [0.4]},
        epoch=epoch,
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        history=tuple({"epoch": n + 1, "loss": 0.1 * n, "implicit_share": None} for n in range(epoch)),
        best_epoch=1,
        best_score=(0.5, 0.9),
    )


def test_everything_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = make()
    checkpoint.save(tmp_path / "last.pt", saved)
    loaded = checkpoint.load(tmp_path / "last.pt")
    for name, tensor in saved.model.items():
        assert torch.equal(loaded.model[name], tensor) and loaded.model[name].dtype == tensor.dtype
    for key, state in saved.optimizer["state"].items():
        assert torch.equal(loaded.optimizer["state"][key]["momentum_buffer"], state["momentum_buffer"])
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]
    for name in ("config", "model_arguments", "epoch", "history", "best_epoch", "best_score"):
        assert getattr(loaded, name) == getattr(saved, name), name
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


# --- files that are not checkpoints -----------------------------------------------------------------------------------


class Hostile:
    """Creates a file when unpickled in the ordinary way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


def archive(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    trap, file = tmp_path / "trapped", tmp_path / "last.pt"
    payload = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "model": Hostile(trap)}
    file.write_bytes(archive(payload))
    with pytest.raises(UserError, match=r"could run code when loaded. Nothing was loaded"):
        checkpoint.load(file)
    assert not trap.exists()
    torch.load(file, weights_only=False)  # The trap works: whoever loads it carelessly is caught.
    assert trap.exists()


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    saved = make()
    file = tmp_path / "last.pt"
    checkpoint.save(file, saved)
    content = file.read_bytes()
    noticed = 0
    # The directory of the archive is at its end; elsewhere a sample of positions is enough.
    for position in [*range(0, 4096, 32), *range(4096, len(content), 7)]:
        file.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        try:
            loaded = checkpoint.load(file)
        except UserError as error:
            assert "\n" not in str(error)
            noticed += 1
        else:  # Padding between the parts of the archive.
            assert all(torch.equal(loaded.model[name], tensor) for name, tensor in saved.model.items())
            assert loaded.config == saved.config and loaded.history == saved.history
    assert noticed > 50


@pytest.mark.parametrize("kept", [0, 1, 100, -100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "last.pt"
    checkpoint.save(file, make())
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"last\.pt"):
        checkpoint.load(file)


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    return buffer.getvalue()


GOOD = {
    "format": checkpoint.FORMAT,
    "version": checkpoint.VERSION,
    "config": CONFIG.to_mapping(),
    "model_arguments": {},
    "epoch": 1,
    "model": {},
    "optimizer": {},
    "history": [],
    "best_epoch": 1,
    "best_score": [1.0],
}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"text\n", "not an archive"),
        (zipped("readme.txt", b"hello"), "PyTorch cannot read it"),
        (archive(torch.zeros(3)), "not a checkpoint of adv-train"),
        (archive({"state_dict": {}}), "not a checkpoint of adv-train"),
        (archive(GOOD | {"version": 99}), "format 99, but this adv-train reads format 2"),
        (archive({key: value for key, value in GOOD.items() if key != "model"}), "not a complete checkpoint"),
        (archive(GOOD | {"digest": "0" * 64}), "does not match its digest"),
        (archive(GOOD), "not a complete checkpoint"),
        (archive(GOOD | {"model": {"weight": 3}}), "not a mapping of tensors"),
        (archive(GOOD | {"epoch": "two"}), "not a complete checkpoint"),
        (archive(GOOD | {"config": {"data": "digits"}}), "not a complete checkpoint"),
        (archive(GOOD | {"config": CONFIG.to_mapping() | {"eps": 7.0}}), "`eps` must not exceed"),
        (archive(GOOD | {"config": CONFIG.to_mapping() | {"unheard_of": 1}}), "not a complete checkpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_foreign_file_is_told_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "best.pt"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        checkpoint.load(file)
    assert says in str(error.value) and "best.pt" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="adv-train fit --out"):
        checkpoint.load(tmp_path / "run" / "best.pt")
    with pytest.raises(UserError, match="Is a directory"):
        checkpoint.load(tmp_path)


# --- saves that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_the_previous_checkpoint_and_no_scraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = tmp_path / "last.pt"
    checkpoint.save(file, make(epoch=1))
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=os.strerror(number)) as error:
        checkpoint.save(file, make(epoch=2))
    assert "last.pt" in str(error.value) and "\n" not in str(error.value)
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


LIMITED = """
import resource, sys
from pathlib import Path
from adv_train.errors import UserError
from adv_train.files import replace_file
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    replace_file(Path(sys.argv[1]), b"new" * 100_000)
except UserError as error:
    print(error)
"""


def test_a_write_that_the_system_stops_half_way_changes_nothing(tmp_path: Path) -> None:
    # The kernel itself refuses here, in the middle of the file: the nearest to a full disk without a disk to fill.
    file = tmp_path / "last.pt"
    file.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(file)], capture_output=True, text=True, check=True)
    assert "Cannot write" in done.stdout and "File too large" in done.stdout
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


KILLED = """
import sys
from pathlib import Path
from adv_train.files import replace_file
print("ready", flush=True)
while True:
    for letter in (b"a", b"b"):
        replace_file(Path(sys.argv[1]), letter * 300_000)
"""


def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    file.write_bytes(b"a" * 300_000)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(60):  # What a reader sees at any moment is what a kill at that moment would leave.
        content = file.read_bytes()
        assert len(content) == 300_000 and len(set(content)) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    content = file.read_bytes()
    assert len(content) == 300_000 and len(set(content)) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for target in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"Cannot make the folder `.*file"):
            files.make_folder(target)


def test_where_folders_cannot_be_opened_files_are_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def as_on_windows(path: Any, *arguments: Any, **named: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied")
        return original(path, *arguments, **named)

    monkeypatch.setattr(os, "open", as_on_windows)
    file = tmp_path / "last.pt"
    for epoch in (1, 2):
        checkpoint.save(file, make(epoch))
        assert checkpoint.load(file).epoch == epoch
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]

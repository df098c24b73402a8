"""Record which file is in which split: a run stores it, so that files added later do not change its splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from adv_train.data.read_images import for_each_file, named
from adv_train.data.split import SPLITS
from adv_train.errors import UserError

_FORMAT = 1


class Entry(NamedTuple):
    """One file of a split.

    Attributes:
        name: Path relative to the data set's folder, with ``/`` between its components.
        label: Label of its class.
        digest: Digest of its bytes, as `digests` computes it.
    """

    name: str
    label: int
    digest: str


@dataclass(frozen=True)
class SplitRecord:
    """The splits of an image folder, file by file.

    Attributes:
        classes: Names of the classes, in the order of the labels.
        train: Files of the training split, in order.
        validation: Files of the validation split, in order.
        test: Files of the test split, in order.
        beyond: Number of files that a limit left out when the splits were made.
    """

    classes: tuple[str, ...]
    train: tuple[Entry, ...]
    validation: tuple[Entry, ...]
    test: tuple[Entry, ...]
    beyond: int = 0

    def to_mapping(self) -> dict[str, Any]:
        """Convert to lists, strings and numbers, for JSON, YAML or a checkpoint; `from_mapping` reads them back."""
        splits: dict[str, Any] = {split: [list(entry) for entry in getattr(self, split)] for split in SPLITS}
        return {"format": _FORMAT, "classes": list(self.classes), "beyond": self.beyond, **splits}

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any]) -> SplitRecord:
        """Read the output of `to_mapping`.

        Raises:
            UserError: If `found` is not such an output.
        """
        try:
            if found["format"] != _FORMAT:
                raise UserError(f"The recorded split has format {found['format']!r}, but only {_FORMAT} can be read.")
            classes = tuple(str(name) for name in found["classes"])
            splits = {split: tuple(_entry(len(classes), *row) for row in found[split]) for split in SPLITS}
            beyond = int(found.get("beyond", 0))  # older records have no such key
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"The recorded split cannot be read: {type(error).__name__} {error}.") from None
        return cls(classes, **splits, beyond=beyond)

    def check(self, folder: Path) -> None:
        """Check that a folder still holds the recorded files.

        Raises:
            UserError: If files are missing or have changed; the message names them.
        """
        entries = [entry for split in SPLITS for entry in getattr(self, split)]
        found = digests([folder / entry.name for entry in entries])
        missing = [entry.name for entry, now in zip(entries, found, strict=True) if now is None]
        changed = [e.name for e, now in zip(entries, found, strict=True) if now is not None and now != e.digest]
        for names, what in ((missing, "are missing or cannot be opened"), (changed, "have changed since")):
            if names:
                raise UserError(
                    f"`{folder}` does not match the record of the run: {len(names)} of {len(entries)} files {what}: "
                    f"{named(names)}. Put them back, or give the folder that holds them."
                )


def digests(files: Sequence[Path]) -> list[str | None]:
    """Compute the digest of each file: 32 hexadecimal digits (BLAKE2b), or None if the file cannot be opened."""
    return for_each_file(lambda _, file: _digest(file), files, "files")


def _digest(file: Path) -> str | None:
    try:
        return blake2b(file.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None


def _entry(classes: int, name: str, label: int, digest: str) -> Entry:
    if not 0 <= label < classes:
        raise ValueError(f"label {label} of {name} among {classes} classes")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name} lies outside the folder")
    return Entry(str(name), int(label), str(digest))

"""Load the loss landscape that `adv-train plot landscape` drew, for the report of its run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from adv_train.records import RunFolder
from adv_train.report.summary import Picture

_PNG = b"\x89PNG\r\n\x1a\n"


def drawn_landscape(run: RunFolder, judged: Mapping[str, Any]) -> Picture | None:
    """Return the figure in ``RUN/plots/landscape.png`` and describe it by the numbers in ``landscape.csv``.

    Args:
        run: The run folder.
        judged: The evaluation that the report shows.

    Returns:
        The figure; None if it was not drawn, or its files are damaged: drawing it again repairs them.
    """
    folder = run.path / "plots"
    try:
        png = (folder / "landscape.png").read_bytes()
        rows = list(csv.DictReader(io.StringIO((folder / "landscape.csv").read_text(encoding="utf-8"))))
        if len({row["run"] for row in rows}) != 1 or not png.startswith(_PNG):
            return None
        return Picture(png, _told(rows, judged))
    except (OSError, ValueError, KeyError, TypeError, IndexError, csv.Error):
        return None


def _told(rows: list[dict[str, str]], judged: Mapping[str, Any]) -> str:
    first = rows[0]
    what = f"test image {first['image']}" if first["image"] else f"mean over {first['images']} test images"
    told = f"Cross-entropy, {what}, {first['norm']}, ε = {float(first['eps']):.4g}"
    # Only a grid with an odd number of points contains the clean images.
    loss = {(float(row["adversarial_in_eps"]), float(row["random_in_eps"])): float(row["loss"]) for row in rows}
    named = {
        (0.0, 0.0): "at the images",
        (1.0, 0.0): "one ε against the model",
        (0.0, 1.0): "one ε in a random direction",
    }
    known = [f"{loss[place]:.3g} nats {name}" for place, name in named.items() if place in loss]
    told += f": {', '.join(known)}." if known else "."
    about = (first["checkpoint"], int(first["epoch"]))
    drawn, evaluated = first.get("weights"), judged.get("weights")  # Older files and records do not name them.
    if (drawn and evaluated and drawn != evaluated) or about != (judged.get("checkpoint"), judged.get("epoch")):
        told += f" The weights are those of {about[0]}, epoch {about[1]}, not those evaluated above."
    return told

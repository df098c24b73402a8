"""Write a trained model in a form that others read, and compare what was written with the model.

examples:
  adv-train export runs/a --form onnx --out a.onnx
  adv-train export runs/a --form torch-export --out a.pt2 --checkpoint last
  adv-train export runs/a --form safetensors --out a.safetensors
  adv-train export runs/a --form state-dict --out a.pt --force
  adv-train export runs/a --form robustbench --model-id Doe2026Fast --title "Fast" --authors "J. Doe" --out rb

The best checkpoint is written, with averaged weights where the run has them. Images in [0, 1] go in: the normalisation
is inside. What was written is read back, and its logits of random images are compared with those of the model; on a
mismatch nothing is kept. `robustbench` takes its figures from the evaluation by `adv-train eval RUN`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adv_train.cli.command_line import options
from adv_train.errors import UserError
from adv_train.export import FORMS, export
from adv_train.export.writing import BATCHES


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to write, and how.

    Attributes:
        run: Run folder, or a checkpoint file of a run.
        form: One of `adv-train list forms`.
        out: File to write, for robustbench a folder.
        checkpoint: Of the run: best on validation, or last.
        force: Replace what is there.
        opset: For onnx: version of its operators; 18 by default.
        model_id: For robustbench: how the model is called there, such as Wong2020Fast.
        title: For robustbench: of the paper.
        authors: For robustbench: of the paper, with commas between.
        venue: For robustbench: of the paper, with the year.
        link: For robustbench: to the paper.
        footnote: For robustbench: what else the leaderboard is to tell.
        additional_data: For robustbench: more data than the training images were used.
    """

    run: Path | None = None
    form: str | None = None
    out: Path | None = None
    checkpoint: Literal["best", "last"] = "best"
    force: bool = False
    opset: int | None = None
    model_id: str | None = None
    title: str | None = None
    authors: str | None = None
    venue: str | None = None
    link: str | None = None
    footnote: str | None = None
    additional_data: bool = False


_OWN = ("run", "form", "out", "checkpoint", "force")


def read(words: Sequence[str]) -> Export:
    """Read the command line."""
    return options(Export, words, "adv-train export", __doc__ or "", positional="run")


def run(words: Sequence[str]) -> int:
    """Write, compare, and say so."""
    command = read(words)
    if command.run is None or command.form is None or command.out is None:
        missing = {"RUN": command.run, "--form": command.form, "--out": command.out}
        named = ", ".join(flag for flag, value in missing.items() if value is None)
        raise UserError(f"Say also {named}; the forms are {', '.join(FORMS.names())}.")
    chosen = {key: value for key, value in vars(command).items() if key not in _OWN and value not in (None, False)}
    made = export(
        command.run, command.out, form=command.form, checkpoint=command.checkpoint, force=command.force, **chosen
    )
    averaged = f" (averaged weights, {made.about['averaged']})" if made.about["averaged"] else ""
    print(f"{made.path} is {made.about['model']} of epoch {made.about['epoch']}{averaged}, {made.size / 1e6:.1f} MB.")
    print(
        f"Read back, its logits of {' and '.join(map(str, BATCHES))} random images differ from the model's by at most "
        f"{made.difference:.2g} ({made.allowed:.2g} is allowed)."
    )
    for note in made.notes:
        print(f"note: {note}")
    return 0

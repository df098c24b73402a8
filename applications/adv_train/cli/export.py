"""Write a trained model in a form that other programs read, and compare the written model with the original.

examples:
  adv-train export runs/a --form onnx --out a.onnx
  adv-train export runs/a --form torch-export --out a.pt2 --checkpoint last
  adv-train export runs/a --form safetensors --out a.safetensors
  adv-train export runs/a --form state-dict --out a.pt --force
  adv-train export runs/a --form robustbench --model-id Doe2026Fast --title "Fast" --authors "J. Doe" --out rb

The command writes the best checkpoint, with averaged weights if the run has them. The written model takes images in
[0, 1]: it contains the normalisation. The command reads the written model back and compares its logits on random images
with those of the original; if they differ, it keeps no file. The form `robustbench` takes its accuracies from the
record of `adv-train eval RUN`.
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
    """The model to write, and the form to write it in.

    Attributes:
        run: Run folder, or a checkpoint file of a run.
        form: Form of the written model (see `adv-train list forms`).
        out: File to write; a folder for robustbench.
        checkpoint: Checkpoint of the run: the best on validation, or the last.
        force: Replace existing files.
        opset: For onnx: version of the operator set; 18 by default.
        model_id: For robustbench: name of the model there, such as Wong2020Fast.
        title: For robustbench: title of the paper.
        authors: For robustbench: authors of the paper, separated by commas.
        venue: For robustbench: venue and year of the paper.
        link: For robustbench: URL of the paper.
        footnote: For robustbench: footnote on the leaderboard.
        additional_data: For robustbench: training used more data than the training images.
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
    """Write the model, compare it with the original, and print the result."""
    command = read(words)
    if command.run is None or command.form is None or command.out is None:
        missing = {"RUN": command.run, "--form": command.form, "--out": command.out}
        named = ", ".join(flag for flag, value in missing.items() if value is None)
        raise UserError(f"Give also {named}; the forms are {', '.join(FORMS.names())}.")
    chosen = {key: value for key, value in vars(command).items() if key not in _OWN and value not in (None, False)}
    made = export(
        command.run, command.out, form=command.form, checkpoint=command.checkpoint, force=command.force, **chosen
    )
    averaged = f" (averaged weights, {made.about['averaged']})" if made.about["averaged"] else ""
    print(f"{made.path} is {made.about['model']} of epoch {made.about['epoch']}{averaged}, {made.size / 1e6:.1f} MB.")
    print(
        f"Read back, its logits on {' and '.join(map(str, BATCHES))} random images differ from the model's by at most "
        f"{made.difference:.2g} ({made.allowed:.2g} is allowed)."
    )
    for note in made.notes:
        print(f"note: {note}")
    return 0

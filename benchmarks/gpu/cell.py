"""One cell of the table, in its own process: train, then evaluate slice by slice; if killed, it can be resumed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from adv_train import evaluate
from adv_train.attacks import PGD, Attack, StandardAutoAttack
from adv_train.cli import main as adv_train_main
from adv_train.data.stratified import stratified_head
from adv_train.files import replace_file
from adv_train.loading import load_checkpoint, load_data, load_model
from adv_train.records import RunFolder

FILE = "judged.json"
#: For each attack, the number of test images and the number of images in a slice.
PLAN: dict[str, dict[str, Any]] = {
    "pgd": {"images": 10_000, "slice": 1000, "steps": 50, "restarts": 10},
    "autoattack": {"images": 1000, "slice": 250},
}


def main(arguments: list[str]) -> int:
    """Run `adv-train fit` with these arguments, then evaluate the last checkpoint by this plan; both are JSON."""
    words, plan = (json.loads(text) for text in arguments)
    status = adv_train_main(["fit", *words])
    if status == 0:
        judge(Path(words[words.index("--out") + 1]), plan)
    return status


def judge(folder: Path, plan: dict[str, dict[str, Any]]) -> None:
    """Write into the run's folder how many images of each slice are classified correctly, clean and attacked.

    An attack gets the same share of each class. Its images are cut into slices in the order of the data set, and each
    slice is attacked with its number as the seed. The sum over the slices is the figure for all images.
    """
    run, file = RunFolder(folder), folder / FILE
    saved = load_checkpoint(run, "last")
    device, threat = torch.device(saved.config.compute.device), saved.config.threat
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if found.get("plan") != plan:
        found = {"plan": plan, "slices": {}}
    model = load_model(folder, checkpoint="last", device=device)
    test = load_data(saved.config, run.split()).test
    for name, part in plan.items():
        chosen = test.subset(stratified_head(test.labels, min(part["images"], len(test)))).to(device)
        for number, begin in enumerate(range(0, len(chosen), part["slice"])):
            key = f"{name} {number}"
            if key in found["slices"]:
                continue
            begun = time.perf_counter()
            images, labels = (t[begin : begin + part["slice"]] for t in (chosen.images, chosen.labels))
            attack: Attack = PGD(part["steps"], part["restarts"]) if name == "pgd" else StandardAutoAttack()
            outcome = evaluate(
                model, images, labels, threat, attacks=[attack], seed=number, batch_size=1000, examples=0
            )
            counts = {
                "n": outcome.n,
                "clean": int(outcome.clean.sum()),
                "robust": int(outcome.attacks[name].robust.sum()),
            }
            seconds = time.perf_counter() - begun
            found["slices"][key] = {**counts, "seconds": seconds, "warnings": list(outcome.warnings)}
            replace_file(file, (json.dumps(found, indent=1) + "\n").encode())


def figures(folder: Path) -> dict[str, Any]:
    """Return accuracies, numbers of images and seconds of the attacks from what `judge` wrote."""
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))

    def total(name: str, what: str) -> int:
        return sum(counts[what] for key, counts in found["slices"].items() if key.startswith(f"{name} "))

    def seconds(name: str) -> float | None:
        taken = [counts.get("seconds") for key, counts in found["slices"].items() if key.startswith(f"{name} ")]
        return None if None in taken else sum(taken)  # a slice from before seconds were kept has none

    return {
        "sa": total("pgd", "clean") / total("pgd", "n"),
        "ra_pgd": total("pgd", "robust") / total("pgd", "n"),
        "ra_aa": total("autoattack", "robust") / total("autoattack", "n"),
        "n": total("pgd", "n"),
        "n_aa": total("autoattack", "n"),
        "pgd_seconds": seconds("pgd"),
        "autoattack_seconds": seconds("autoattack"),
        "judged": found,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

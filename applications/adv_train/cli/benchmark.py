"""Measure what each method costs: forward passes counted, milliseconds, images a second, peak memory.

examples:
  adv-train bench
  adv-train bench --device cuda --batch-size 128 --out results/bench.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from adv_train import bench, values
from adv_train.cli.flags import add_progress_flags
from adv_train.devices import find_device
from adv_train.files import make_folder, replace_file
from adv_train.precision import PRECISIONS

_READERS = {
    "batch_size": values.whole(2),
    "image_size": values.whole(8),
    "repeats": values.whole(1),
    "eps": values.parse_fraction,
    "precision": values.one_of(PRECISIONS),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--model", metavar="NAME", default="preact-resnet-18", help="network (see `adv-train list`)")
    parser.add_argument("--batch-size", metavar="N", default="8", help="images a step (default: 8)")
    parser.add_argument("--image-size", metavar="N", default="32", help="side of the random images (default: 32)")
    parser.add_argument("--eps", metavar="BUDGET", default="8/255", help="radius of the attack (default: 8/255)")
    parser.add_argument("--repeats", metavar="N", default="10", help="timed rounds (default: 10)")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", metavar="NAME", default="fp32", help=f"{', '.join(PRECISIONS)} (default: fp32)")
    parser.add_argument("--channels-last", action="store_true", help="memory layout that a GPU's matrix units prefer")
    parser.add_argument("--out", metavar="FILE", type=Path, help="also write the figures as JSON")
    add_progress_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table."""
    found = {name: read(getattr(arguments, name), name.replace("_", "-")) for name, read in _READERS.items()}
    device = find_device(arguments.device)
    progress = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    found |= {"channels_last": arguments.channels_last}
    rows = bench.run(model_name=arguments.model, device=device, progress=progress, **found)
    print(bench.table(rows))
    if arguments.out:
        make_folder(arguments.out.parent)
        record = bench.record(rows, model=arguments.model, device=str(device), **found)
        replace_file(arguments.out, (json.dumps(record, indent=2) + "\n").encode())
        print(f"Written to {arguments.out}")
    return 0

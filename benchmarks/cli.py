"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import markdown, record
from benchmarks.registry import Benchmark, Setting, discover, stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, print their tables, write the record and return the exit status.

    The status is 1 if a benchmark raised an error, and 2 if the arguments are wrong. A missed goal is no error.
    """
    # With one thread, ratios compare work and not scheduling. It is set before another library starts threads.
    torch.set_num_threads(1)
    found = discover()
    options = _parser(found).parse_args(arguments)
    if options.list:
        print("\n".join(f"{name:<24}{each.title}" for name, each in found.items()))
        return 0
    chosen = list(found) if not options.names else options.names
    unknown = [name for name in chosen if name not in found]
    if unknown:
        stderr(f"error: no benchmark is called {', '.join(unknown)}; there are: {', '.join(found)}.")
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        stderr("error: --device cuda needs a GPU that torch can use, but there is none; use --device cpu.")
        return 2
    setting = Setting(
        torch.device(options.device), getattr(torch, options.dtype), options.rounds, options.quick, options.seed, stderr
    )
    out = options.out or Path("runs") / "bench" / f"{options.device}-{options.dtype}.json"
    return _run([found[name] for name in chosen], setting, out, options.resume)


def _run(chosen: Sequence[Benchmark], setting: Setting, out: Path, resume: bool) -> int:
    report = record.environment(setting)
    if resume and out.exists():
        report["benchmarks"] = record.continued(report, out)
        if not report["benchmarks"]:
            stderr(f"{out} was made with other code, settings or versions: all benchmarks are run")
        chosen = [each for each in chosen if each.name not in report["benchmarks"]]
    failed = []
    for number, each in enumerate(chosen, 1):
        stderr(f"[{number}/{len(chosen)}] {each.name}: {each.title}")
        started = time.perf_counter()
        try:
            outcome = each.run(setting)
        except Exception as error:
            failed.append(each.name)
            report["benchmarks"][each.name] = {"error": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        else:
            seconds = time.perf_counter() - started
            report["benchmarks"][each.name] = record.entry(outcome, seconds)
            print(markdown.render(each.title, outcome), flush=True)
        record.write(report, out)  # after each benchmark, so that an interrupted run keeps its results
    stderr(f"record: {out}")
    if failed:
        stderr(f"error: failed: {', '.join(failed)}")
    return int(bool(failed))


def _parser(found: dict[str, Benchmark]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks to run (all): {', '.join(found)}")
    parser.add_argument("--out", type=Path, help="file of the record (JSON); by default runs/bench/DEVICE-DTYPE.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--rounds", type=int, default=15, help="minimum number of timings of each contestant (15)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test that everything runs")
    parser.add_argument("--resume", action="store_true", help="run what is missing in a record of the same code")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    return parser

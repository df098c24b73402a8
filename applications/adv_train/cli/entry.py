"""Run a command line and return its exit status: 0 success, 1 diverged, 2 an error of the user, 130 interrupted."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from adv_train.cli.freed_memory import keep_freed_memory
from adv_train.errors import Diverged, UserError

_EXTRAS = {
    "docstring_parser",
    "filelock",
    "jinja2",
    "matplotlib",
    "PIL",
    "pyautoattack",
    "safetensors",
    "scipy",
    "sklearn",
    "torchvision",
    "tqdm",
    "tyro",
    "yaml",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: The words after ``adv-train``; by default those of this process.

    Returns:
        The exit status.
    """
    keep_freed_memory()
    try:
        # Not at the top of the file: here, a missing package becomes a one-line error, like every other error.
        from adv_train.cli.parser import run

        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = run(sys.argv[1:] if words is None else list(words))
        sys.stdout.flush()
        return status
    except (UserError, Diverged) as error:
        return _fail(str(error), 1 if isinstance(error, Diverged) else 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        return _fail(f"the package {package} is missing; install it with: pip install 'torch-blo[adv-train]'", 2)
    except BrokenPipeError:
        # The program that reads our output has ended (`adv-train list | head`), so nothing may be flushed on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place = f" `{error.filename}`" if error.filename else ""
        return _fail(f"{error.strerror or error}{place}", 2)
    except (MemoryError, RuntimeError) as error:
        # Compared by name, because importing PyTorch for its exception class may be what ran out of memory.
        out_of_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        if not isinstance(error, MemoryError) and not out_of_memory:
            raise
        return _fail("out of memory: choose a smaller --batch-size or --size, or another --device", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; finished work is saved, and the same command resumes from there", 130)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning on one line, without the source line that raised it."""
    print(f"adv-train: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, status: int) -> int:
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    where = f"rank {rank}: " if rank != "0" else ""
    print(f"adv-train: error: {where}{' '.join(message.split())}", file=sys.stderr, flush=True)
    return status

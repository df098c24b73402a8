"""A command keeps freed memory, so that its training steps do not wait for the system to clear pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from adv_train.cli import entry

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such thresholds")

#: Allocates and frees 80 MB in blocks like those of activations, and prints the page faults after the first times. The
#: thresholds of glibc start at their initial values, which glibc otherwise raises by chance.
_STEPS = """
import ctypes
import resource
import torch
from adv_train.cli.freed_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    blocks = [torch.zeros(2**20) for _ in range(20)]

for number in (-1, -3):
    ctypes.CDLL(None).mallopt(number, 2**17)
{call}
for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def faults(call: str, **variables: str) -> int:
    code, environment = _STEPS.format(call=call), {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_step_takes_the_memory_of_the_step_before_unless_the_user_decides_otherwise() -> None:
    kept = faults("keep_freed_memory()")
    assert faults("") > 10 * kept
    assert faults("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072") > 10 * kept


def test_every_command_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(entry, "keep_freed_memory", lambda: calls.append(True))
    assert entry.main(["list", "norms"]) == 0
    assert calls == [True]

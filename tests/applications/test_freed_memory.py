"""A command keeps freed memory, so that its training steps do not wait for the system to clear pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such thresholds")

#: Allocates and frees 80 MB in blocks like those of activations, and prints the page faults after the first times.
_STEPS = """
import resource
import torch
from adv_train.cli.freed_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    blocks = [torch.zeros(2**20) for _ in range(20)]

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


def test_a_step_takes_the_memory_of_the_step_before() -> None:
    pages = 5 * 80 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert faults("") > pages / 2  # so this is what glibc does by itself
    assert faults("keep_freed_memory()") < pages / 100


def test_the_settings_of_the_user_come_first() -> None:
    assert faults("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072") > 1000

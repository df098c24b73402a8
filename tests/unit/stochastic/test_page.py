"""The example on the documentation page prints what the page shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "stochastic.md"


def test_the_example_prints_the_output_shown_beneath_it(tmp_path: Path) -> None:
    found = re.search(
        r"^```python\n(.*?)^```$.*?^```text\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found is not None
    source, shown = found.groups()
    run = subprocess.run([sys.executable, "-W", "error", "-c", source], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, shown, "")

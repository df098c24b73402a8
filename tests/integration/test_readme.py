"""What the README and the documentation show is what the code does."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from adv_train.cli import fit
from adv_train.cli.parser import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted(path.name for path in (ROOT / "docs/tutorials").glob("*.md") if path.name != "index.md")


@pytest.mark.parametrize("page", ["README.md", "docs/evaluate.md", "docs/modules.md", "docs/stochastic.md"])
def test_the_first_example_prints_the_output_shown_beneath_it(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```$.*?^```text\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page} needs a ```python block followed by a ```text block with its output"
    source, shown = found.groups()
    # A process of its own: nothing that another test imported or seeded can help the example.
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, shown, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_line_shown_is_one_that_the_program_takes(page: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = re.findall(r"(?:^|&& )adv-train ([^&#\n]+)", "".join(blocks), re.MULTILINE)
    for line in lines:
        command, *words = line.split()
        found = import_module(f"adv_train.cli.{COMMANDS[command][0]}").read(words)
        if command == "fit" and not found[0].config:
            fit.configuration(*found)


def test_the_figures_of_the_readme_are_those_of_the_record() -> None:
    rows = json.loads((ROOT / "results/gpu-true.json").read_text(encoding="utf-8"))["rows"]
    shown = re.findall(
        r"^\| ([\w-]+(?:, \d steps)?) +\| +([\d.]+) \| +[\d.–]+ \| +([\d.]+) \|", README.read_text(), re.MULTILINE
    )
    assert len(shown) == 3
    for name, *accuracies in shown:
        row = rows[f"{name}, 8/255, seed 0"]
        assert accuracies == [f"{100 * row[key]:.2f}" for key in ("sa", "ra_pgd")]


def test_the_page_of_names_lists_the_commands_that_the_program_has() -> None:
    page = (ROOT / "docs/api/index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `adv-train (\w+)", page, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_inclusion_is_spoilt_by_the_formatter(page: Path) -> None:
    """Ruff reads `--8<--` inside a Python block as arithmetic and puts spaces into it."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if re.search(r"-\s*-\s*8\s*<", line)]
    right = r'--8<-- "[\w./:-]+"|<!-- --8<-- \[(start|end):\w+\] -->'
    assert [line for line in lines if not re.fullmatch(right, line.strip())] == []


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_is_in_the_table_and_in_the_navigation_and_its_code_is_valid(page: str) -> None:
    text = (ROOT / "docs/tutorials" / page).read_text(encoding="utf-8")
    blocks = re.findall(r'^```python exec="1".*?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        ast.parse(block)
    assert f"]({page})" in (ROOT / "docs/tutorials/index.md").read_text(encoding="utf-8")
    assert f": tutorials/{page}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_a_page_runs_its_code_from_the_defaults_of_torch_whatever_an_earlier_page_set(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="of the extra `docs`")
    hooks = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)["hooks"]
    site = {
        "site_name": "two pages",
        "hooks": [str(ROOT / hook) for hook in hooks],
        "markdown_extensions": ["pymdownx.superfences"],
        "plugins": ["markdown-exec"],
        "nav": ["first.md", "second.md"],
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(site), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    block = '```python exec="1"\nimport torch\n{}\nprint(torch.get_default_dtype())\n```\n'
    for name, line in (("first", "torch.set_default_dtype(torch.float64)"), ("second", "")):
        (tmp_path / f"docs/{name}.md").write_text(block.format(line), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    first, second = ((tmp_path / f"site/{name}/index.html").read_text(encoding="utf-8") for name in ("first", "second"))
    assert ("torch.float64" in first, "torch.float32" in second) == (True, True)


def test_no_two_pages_share_the_names_of_a_session() -> None:
    pages: dict[str, set[Path]] = {}
    for page in PAGES:
        for name in re.findall(r'^```python exec="1".*session="(\w+)"', page.read_text(encoding="utf-8"), re.MULTILINE):
            pages.setdefault(name, set()).add(page)
    assert pages and [name for name, where in pages.items() if len(where) > 1] == []

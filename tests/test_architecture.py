"""The promises of the packaging: what an import costs, where a name lives, which version this is.

Which module may import which is checked by the import contracts in `pyproject.toml`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import types
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

import adv_train
import blo

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = {
    "torchvision",
    "torchopt",
    "matplotlib",
    "sklearn",
    "scipy",
    "pyautoattack",
    "tqdm",
    "yaml",
    "adv_train",
}


def test_importing_blo_loads_no_heavy_package(tmp_path: Path) -> None:
    # torch is imported first, because it loads tqdm itself where that is installed.
    code = """
import sys, numpy, torch
before = set(sys.modules)
import blo
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    # From an empty folder, so that it is the installed package that is found.
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "blo" in loaded
    assert loaded & HEAVY == set()


def test_each_public_name_of_blo_exists_once() -> None:
    repeated = [name for name, times in Counter(blo.__all__).items() if times > 1]
    missing = [name for name in blo.__all__ if not hasattr(blo, name)]
    assert (repeated, missing) == ([], [])


def test_no_object_of_blo_has_two_public_names() -> None:
    names: dict[int, list[str]] = {}
    for name in blo.__all__:
        names.setdefault(id(getattr(blo, name)), []).append(name)
    assert [found for found in names.values() if len(found) > 1] == []


def test_blo_offers_no_undeclared_public_name() -> None:
    undeclared = {
        name
        for name, value in vars(blo).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in blo.__all__
    }
    assert undeclared - {"annotations"} == set()


def test_the_version_is_stated_once_and_repeated_faithfully() -> None:
    version = PYPROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert importlib.metadata.version(PYPROJECT["project"]["name"]) == blo.__version__ == citation["version"] == version


@pytest.mark.parametrize("package", [blo, adv_train], ids=["blo", "adv_train"])
def test_packages_come_from_this_checkout_and_are_typed(package: types.ModuleType) -> None:
    (folder,) = package.__path__
    assert Path(folder).is_relative_to(ROOT)
    assert (Path(folder) / "py.typed").is_file()


def test_the_core_depends_on_torch_and_numpy_only() -> None:
    assert {line.split(">")[0] for line in PYPROJECT["project"]["dependencies"]} == {"torch", "numpy"}


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_the_oldest_torch_that_is_promised_is_the_one_required(page: str) -> None:
    oldest = next(line for line in PYPROJECT["project"]["dependencies"] if line.startswith("torch")).partition(">=")[2]
    assert f"torch ({oldest} or newer)" in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("extra", [None, "adv-train", "test"])
def test_what_the_oldest_environment_holds_has_lower_bounds(extra: str | None) -> None:
    project = PYPROJECT["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    assert [line for line in lines if ">=" not in line] == []


@pytest.mark.parametrize("package", [blo, adv_train], ids=["blo", "adv_train"])
def test_every_public_name_is_on_its_api_page(package: types.ModuleType) -> None:
    page = (ROOT / f"docs/api/{package.__name__}.md").read_text(encoding="utf-8")
    documented = re.findall(rf"^::: {package.__name__}\.(\w+)$", page, re.MULTILINE)
    assert sorted(documented) == sorted(package.__all__)


def test_the_page_of_names_lists_every_public_name_of_blo() -> None:
    page = (ROOT / "docs/api/index.md").read_text(encoding="utf-8")
    assert [name for name in blo.__all__ if f"`{name}`" not in page] == []


def test_one_module_of_blo_touches_the_pytree_library() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "blo").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom) and re.search(r"pytree|optree", ast.unparse(node))
    }
    assert users == {"blo/tree.py"}


def test_private_parts_of_torch_are_named_in_two_modules_of_blo() -> None:
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "blo").rglob("*.py")
    }
    private = r"\btorch(\.\w+)*\._[a-zA-Z]|from torch\S* import .*\b_[a-zA-Z]"
    named = {name for name, text in texts.items() if re.search(private, text)}
    assert named == {"blo/_torch.py", "blo/tree.py"}
    trees = {name: ast.parse(text) for name, text in texts.items() if name not in named}
    ours = {name for tree in trees.values() for name in _defined(tree)} | {"_replace"}  # the latter of named tuples
    # Private attributes of objects that torch made, such as `storage._cdata`.
    used = {
        f"{name}: {ast.unparse(node)}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match(r"_[a-zA-Z]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", "sys", "functorch"})
        and (node.attr not in ours or node.attr in {*dir(torch.Tensor), *vars(torch.nn.Module())})
    }
    assert used == set()


def _defined(tree: ast.AST) -> set[str]:
    """Return the names of functions, classes, variables and attributes that a module defines."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found

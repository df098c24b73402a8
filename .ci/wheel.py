"""Builds the distribution as a user would get it, installs it into empty environments outside the checkout, uses it.

The releases are those that the tests ran on, so that nothing is downloaded twice. What passes is left in dist/. If the
environment variable TAG is set, it must be `v` and the version, and the changelog must have a section for that version.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = str(Path(sys.executable).with_name("uv"))
#: The gradient of ||z||^2 at argmin ||z - theta||^2 is 2 theta.
HYPERGRADIENT = """
import importlib.util, torch, blo
assert not blo.__file__.startswith({root!r}), blo.__file__
assert not any(map(importlib.util.find_spec, ("torchvision", "scipy", "sklearn", "matplotlib", "pyautoattack")))
lower = blo.LowerProblem(lambda theta, z: (z - theta).square().sum())
theta = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
blo.argmin(lower, theta, torch.zeros_like(theta)).square().sum().backward()
assert torch.allclose(theta.grad, 2 * theta, rtol=1e-8), theta.grad
"""


def main() -> None:
    """Raise an error where the distribution is not what it should be."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        run(folder, UV, "build", "--quiet", "--out-dir", folder, ROOT)  # the wheel is built from the source archive
        (wheel,) = folder.glob("*.whl")
        distribution, version = contents(wheel)
        check_tag(os.environ.get("TAG", ""), version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
        pinned = folder / "constraints.txt"
        tested = run(folder, UV, "pip", "freeze", "--python", sys.executable)
        pinned.write_text("\n".join(re.findall(r"^[\w.-]+==\S+$", tested, re.MULTILINE)))
        bare = environment(folder / "bare")
        install = (UV, "pip", "install", "--quiet", "--constraint", pinned, "--python", bare / "python")
        run(folder, *install, wheel)
        run(folder, bare / "python", "-W", "error", "-c", HYPERGRADIENT.format(root=str(ROOT)))

        assert "adv-train fit" in run(folder, bare / "adv-train", "--help")  # needs none of the extra's packages

        # The command says how to install what it lacks, and that is enough to train a network.
        train = (bare / "adv-train", "fit", "--data", "digits", "--method", "fast-bat", "--epochs", "1", "--out", "run")
        said = run(folder, *train, status=2)
        advice = re.search(r"pip install '(.+)'$", said.strip())
        assert advice and advice[1] == f"{distribution}[adv-train]", said
        run(folder, *install, advice[1])
        assert "is trained" in run(folder, *train, "--train-limit", "64")
        assert "cifar10-16-fast-bat" in run(folder, bare / "adv-train", "list")  # presets are in the wheel
        keep(ROOT / "dist", wheel, *folder.glob("*.tar.gz"))
        print(f"dist/{wheel.name}: built, installed and used, without and with its extra")


def check_tag(tag: str, version: str, changelog: str) -> None:
    """Check that a release is tagged with its version and described in the changelog; an empty tag is no release."""
    if tag:
        assert tag == f"v{version}", f"the tag {tag} is not v{version}, the version in pyproject.toml"
        found = re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)
        assert found, f"CHANGELOG.md has no section `## {version} - YYYY-MM-DD`"


def keep(folder: Path, *files: Path) -> None:
    """Leave these files in the folder, and no distribution of another version."""
    folder.mkdir(exist_ok=True)
    for old in [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]:
        old.unlink()
    for file in files:
        shutil.copy(file, folder)


def contents(wheel: Path) -> tuple[str, str]:
    """Check which files the wheel holds and what it says of itself; return the distribution's name and version."""
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        (metadata,) = (name for name in files if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(archive.read(metadata).decode())
    info = metadata.partition("/")[0]
    assert {name.partition("/")[0] for name in files} == {"blo", "adv_train", info}, files
    wanted = {"blo/py.typed", "adv_train/py.typed", f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"}
    assert wanted <= set(files), wanted - set(files)
    assert about["License-Expression"] == "Apache-2.0" and about["Description-Content-Type"] == "text/markdown"
    needed = [line for line in about.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {re.split(r"\W", line)[0] for line in needed} == {"torch", "numpy"}, needed
    return str(about["Name"]), str(about["Version"])


def environment(folder: Path) -> Path:
    """Make an empty environment for this Python; return the folder of its commands."""
    run(folder.parent, UV, "venv", "--quiet", "--python", sys.executable, folder)
    return folder / "bin"


def run(folder: Path, *words: str | Path, status: int = 0) -> str:
    """Run a command away from the checkout; return what it printed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(words), cwd=folder, env=clean, text=True, stdout=-1, stderr=subprocess.STDOUT)
    assert done.returncode == status, f"{' '.join(map(str, words))} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


if __name__ == "__main__":
    main()

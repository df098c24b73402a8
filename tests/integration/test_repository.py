"""What the files for contributors promise is there: targets of make, versions of Python, links, forms."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):(?!=).*?## ", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
#: Files that GitHub shows, so that their links are paths below their own folder.
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / ".github/pull_request_template.md", ROOT / "docs/releases.md"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> dict[str, Any]:
    """Read YAML in which `on` is a key, not a truth value."""
    found = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    assert isinstance(found, dict)
    return found


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job.get("steps", ())


def python_versions() -> list[str]:
    lines = PROJECT["project"]["classifiers"]
    return [found[1] for line in lines if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))]


def test_the_files_that_are_looked_at_exist() -> None:
    assert {path.stem for path in WORKFLOWS} == {"tests", "docs", "publish"}
    assert {path.stem for path in FORMS} == {"bug", "hypergradient", "feature"}
    assert {"test", "lint", "wheel"} < TARGETS
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md"} <= set(
        map(name, PAGES)
    )


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_a_workflow_runs_targets_of_make_and_nothing_else(path: Path) -> None:
    lines = [line.strip() for step in steps(read(path)) for line in step.get("run", "").splitlines()]
    assert [line for line in lines if not line.startswith("make ") or line.removeprefix("make ") not in TARGETS] == []
    assert lines


def test_the_hook_runs_a_target_of_make() -> None:
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert hooks and all(hook["entry"].removeprefix("make ") in TARGETS for hook in hooks)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_target_that_a_page_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    lines = [*re.findall(r"`make ([^`\n]+)`", text), *re.findall(r"^make (.+)$", blocks, re.MULTILINE)]
    words = [next(word for word in line.split() if "=" not in word) for line in lines]
    assert [word for word in words if word not in TARGETS | {"TARGET"}] == []


def test_the_matrix_the_classifiers_and_the_lowest_python_agree() -> None:
    versions, lowest = python_versions(), PROJECT["project"]["requires-python"].removeprefix(">=")
    first = int(lowest.removeprefix("3."))
    assert read(ROOT / ".github/workflows/tests.yml")["jobs"]["newest"]["strategy"]["matrix"]["python"] == versions
    assert versions == [f"3.{minor}" for minor in range(first, first + len(versions))]
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    assert f"--python {lowest} .venv-oldest" in MAKEFILE
    for page in ("README.md", "CONTRIBUTING.md", "docs/getting-started.md"):
        assert f"Python {lowest} or newer" in (ROOT / page).read_text(encoding="utf-8"), page


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_a_workflow_uses_a_python_that_is_tested_and_few_rights(path: Path) -> None:
    workflow = read(path)
    chosen = {step["with"]["python-version"] for step in steps(workflow) if "setup-python" in step.get("uses", "")}
    assert chosen <= {*python_versions(), "${{ matrix.python }}"}
    assert workflow["permissions"] == {"contents": "read"}
    assert [step["uses"] for step in steps(workflow) if "uses" in step and "@" not in step["uses"]] == []


def test_only_a_tag_publishes_and_only_after_tests_and_build() -> None:
    workflow = read(ROOT / ".github/workflows/publish.yml")
    jobs = workflow["jobs"]
    assert workflow["on"] == {"push": {"tags": ["v*"]}}
    tests = ROOT / jobs["tests"]["uses"]
    assert "workflow_call" in read(tests)["on"]
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("tests", "build")
    assert [job for job in jobs if "id-token" in jobs[job].get("permissions", {})] == ["publish"]
    (upload,) = (step for step in jobs["build"]["steps"] if "upload-artifact" in step.get("uses", ""))
    (download,) = (step for step in jobs["publish"]["steps"] if "download-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == download["with"]["path"] == "dist"
    assert upload["with"]["name"] == download["with"]["name"]


def test_a_tag_must_be_the_version_and_the_changelog_must_describe_it() -> None:
    check = runpy.run_path(str(ROOT / ".ci/wheel.py"))["check_tag"]
    log = "# Changelog\n\n## Unreleased\n\n## 1.2.0 - 2030-01-31\n"
    check("v1.2.0", "1.2.0", log)
    check("", "1.3.0", log)
    for tag, version in (("v1.2.0", "1.2.1"), ("1.2.0", "1.2.0"), ("v1.3.0", "1.3.0"), ("v1x2.0", "1x2.0")):
        with pytest.raises(AssertionError, match=r"tag|CHANGELOG"):
            check(tag, version, log)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_to_files_and_headings_of_the_repository_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)]
    used, defined = set(re.findall(r"\]\[([^\]]+)\]", text)), set(re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE))
    assert used == defined
    for link in links:
        place, _, heading = link.partition("#")
        if re.match(r"https?://", link):
            continue
        target = path.parent / place if place else path
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def headings(path: Path) -> set[str]:
    """Return the anchors that GitHub and MkDocs give to the headings of a page."""
    found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).strip().replace(" ", "-") for text in found}


def test_paths_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split() if line[0] == "/"}
    paths = {path for path in re.findall(r"`([\w.-]+/[\w./-]*)`", text) if path.partition("/")[0] not in made}
    assert "tests/oracles.py" in paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", FORMS, ids=name)
def test_an_issue_form_has_what_github_asks_of_it(path: Path) -> None:
    form = read(path)
    assert form["name"] and form["description"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert fields and all(part["type"] == "textarea" and part["attributes"]["label"] for part in fields)
    ids = [part["id"] for part in fields]
    assert len(set(ids)) == len(ids)
    assert "true" in [part.get("validations", {}).get("required") for part in fields]
    if path.stem == "hypergradient":
        (check,) = (part for part in fields if part["id"] == "check")
        assert "blo.check_hypergrad(" in check["attributes"]["label"] and check["validations"]["required"] == "true"
    if path.stem != "feature":
        assert {"script", "versions"} <= set(ids)


def test_the_version_line_of_the_issue_forms_runs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line for path in FORMS for line in re.findall(r'python -c "([^"]+)"', path.read_text(encoding="utf-8"))}
    (line,) = lines
    exec(line, {})
    assert capsys.readouterr().out.startswith(PROJECT["project"]["version"])


def test_committed_pictures_are_small() -> None:
    pictures = [path for kind in ("png", "svg") for path in (ROOT / "docs").rglob(f"*.{kind}")]
    assert pictures and all(path.stat().st_size < 150_000 for path in pictures)

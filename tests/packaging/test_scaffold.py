"""What `converge plugins new` writes: it installs beside the wheel of the core, passes its own tests, and has style."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from converge.operations.plugins.scaffold import TEMPLATES, Template, write_plugin

KINDS = (("store", "--embedded"), ("store", "--server"), ("transport",), ("discovery",), ("hooks",))
NAME = "night-owl"
"""With a dash, so that its module, its class and what users type all differ."""
EVERYTHING = os.environ.get("FULL_TESTS") == "1"
SUFFERS = ("restart", "cut", "freeze", "refuse_writes", "rotate")
"""What the store with a server offers to certification; two releases are in tests/kit."""


@attrs.frozen
class Package:
    """A package that was written, and the interpreter of an environment where it is installed, editable."""

    folder: Path
    python: Path

    def run(self, *arguments: str, timeout: float = 110.0) -> str:
        """Run a module of Python there, and return its output; it must succeed."""
        done = subprocess.run(
            [str(self.python), "-m", *arguments], capture_output=True, text=True, timeout=timeout, cwd=self.folder
        )
        assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
        return done.stdout


def written(kind: tuple[str, ...], folder: Path, python: str) -> Path:
    """Write the package of a kind, and return its folder."""
    command = [python, "-m", "converge", "plugins", "new", kind[0], NAME, *kind[1:], "--dir", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


@pytest.fixture
def package(request: pytest.FixtureRequest, fresh_python: Callable[[str], Path], tmp_path: Path) -> Package:
    """A package of the test's kind, written by the core's wheel in an environment of its own, and installed there."""
    python = fresh_python("converge-core")
    folder = written(request.param, tmp_path, str(python))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "-e", str(folder)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Package(folder, python)


@pytest.mark.parametrize("package", KINDS if EVERYTHING else KINDS[:1], indirect=True, ids=" ".join)
def test_it_is_listed_and_two_processes_work_with_it_at_once(package: Package) -> None:
    listed: list[dict[str, Any]] = [
        json.loads(line) for line in package.run("converge", "plugins", "list", "--json").splitlines()
    ]
    (mine,) = [one for one in listed if one["name"] == NAME]
    assert (mine["distribution"], mine["version"]) == (package.folder.name, "0.1.0")
    package.run("pytest", "-q", "-p", "no:cacheprovider", "tests/test_smoke.py")


@pytest.mark.skipif(not EVERYTHING, reason="with FULL_TESTS=1 only, for its length")
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("package", KINDS, indirect=True, ids=" ".join)
def test_its_own_tests_pass_and_its_types_are_strict(package: Package) -> None:
    package.run("pytest", "-q", "-p", "no:cacheprovider", timeout=800)
    package.run("mypy", "--strict", "src", "tests")
    told = package.run("converge", "plugins", "check", NAME, "--quick", "--certify", timeout=500)
    if list(package.folder.rglob("server.py")):
        assert all(f"{name}: well again after" in told for name in SUFFERS), told
    if list(package.folder.rglob("discovery.py")):
        assert all(f"{name}: well again after" in told for name in ("restart", "fork")), told


def expect_style(folder: Path, *checks: list[str]) -> None:
    """Check a package by ruff, with its own settings."""
    for check in checks:
        command = [sys.executable, "-m", "ruff", *check, "--no-cache", "."]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_its_style_holds_and_nothing_of_the_template_is_left(template: Template, tmp_path: Path) -> None:
    (folder, *_) = write_plugin(template, "acme", tmp_path)  # as long as the name in the templates
    expect_style(folder, ["check"], ["check", "--select", "E,W"], ["format", "--check"])
    (folder, *_) = write_plugin(template, NAME, tmp_path)
    expect_style(folder, ["check"], ["format", "--check"])
    texts = {file: file.read_text() for file in folder.rglob("*") if file.is_file()}
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", ".gitignore", "py.typed", "test.yml"} <= {
        file.name for file in texts
    }
    left = {str(file) for file, text in texts.items() if "acme" in f"{file} {text}".lower() or "KIND" in text}
    assert left == set()
    entries = texts[folder / "pyproject.toml"]
    assert re.search(r'^    "converge-core>=[0-9][^,]*,<[0-9]+",$', entries, re.MULTILINE)
    groups = ['."converge.schemes"]', '."converge.testing"]']
    assert [group in entries for group in groups] == [template.kind in ("store", "transport"), template.kind != "hooks"]
    assert any("REPLACE" in text for text in texts.values())

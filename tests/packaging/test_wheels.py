"""Each wheel alone beside the core: its files, its entry points, and what importing it loads."""

from __future__ import annotations

import json
import subprocess
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = {
    file.parent.name: tomllib.loads(file.read_text())["project"]
    for file in sorted(ROOT.glob("converge-*/pyproject.toml"))
}
PLUGINS = [name for name in PROJECTS if name != "converge-core"]
GROUPS = ("converge", "converge.schemes")
BUILTIN = {"memory", "file", "local", "store", "static"}
BUILTIN_SCHEMES = {"memory", "file", "local"}
# Neither a driver, nor a library of the command line, nor one of the tests.
HEAVY = (
    *("hiredis", "sqlalchemy", "asyncpg", "asyncmy", "aiosqlite", "websockets"),
    *("cyclopts", "rich", "pytest", "_pytest", "hypothesis", "trio", "uvloop"),
)

READ_ENTRY_POINTS = """
import importlib.metadata, json
groups = {group: {e.name: e.value for e in importlib.metadata.entry_points(group=group)} for group in ("converge",
"converge.schemes")}
print(json.dumps(groups))
"""
LOAD_ENTRY_POINTS = """
import importlib.metadata
for group in ("converge", "converge.schemes"):
    for entry in importlib.metadata.entry_points(group=group):
        entry.load()
"""
LIST_LOADED = """
import json, sys
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def import_name(package: str) -> str:
    """The name that a package is imported by."""
    return "converge" if package == "converge-core" else package.replace("-", "_")


def run(python: Path, code: str) -> str:
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=60, cwd=python.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def heavy(loaded: list[str]) -> set[str]:
    """The modules among those loaded that a mere import must not load."""
    return {name for name in loaded for unwanted in HEAVY if name == unwanted or name.startswith(f"{unwanted}.")}


@pytest.mark.parametrize("package", PROJECTS)
def test_a_wheel_holds_its_package_its_types_and_its_licence_only(package: str, wheels: dict[str, Path]) -> None:
    names = zipfile.ZipFile(wheels[package]).namelist()
    module, metadata = import_name(package), f"{package.replace('-', '_')}-{PROJECTS[package]['version']}.dist-info"
    assert f"{module}/py.typed" in names
    assert f"{metadata}/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {module, metadata}
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.parametrize("package", PROJECTS)
def test_a_wheel_holds_every_file_of_its_source(package: str, wheels: dict[str, Path]) -> None:
    source = ROOT / package / "src"
    files = {
        str(file.relative_to(source))
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert files <= set(zipfile.ZipFile(wheels[package]).namelist())


def test_the_core_alone_offers_the_built_in_plugins(python_with: Callable[[str], Path]) -> None:
    groups = json.loads(run(python_with("converge-core"), READ_ENTRY_POINTS))
    assert set(groups["converge"]) == BUILTIN
    assert set(groups["converge.schemes"]) == BUILTIN_SCHEMES


@pytest.mark.parametrize("package", PLUGINS)
def test_a_plugin_adds_its_name_and_its_schemes(package: str, python_with: Callable[[str], Path]) -> None:
    groups = json.loads(run(python_with(package), READ_ENTRY_POINTS))
    name, module = package.rpartition("-")[2], f"{import_name(package)}.plugin"
    assert groups["converge"].items() >= {name: module}.items()
    assert set(groups["converge"]) == {*BUILTIN, name}
    schemes = {scheme: target for scheme, target in groups["converge.schemes"].items() if scheme not in BUILTIN_SCHEMES}
    assert schemes
    assert set(schemes.values()) == {module}


@pytest.mark.parametrize("package", PROJECTS)
def test_every_entry_point_can_be_loaded(package: str, python_with: Callable[[str], Path]) -> None:
    run(python_with(package), LOAD_ENTRY_POINTS)


def test_the_command_is_installed_and_answers(python_with: Callable[[str], Path]) -> None:
    command = python_with("converge-core").with_name("converge")
    done = subprocess.run([str(command), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "converge" in done.stdout


def test_importing_the_core_loads_no_driver_command_line_or_test_library(python_with: Callable[[str], Path]) -> None:
    loaded = json.loads(run(python_with("converge-core"), LIST_LOADED.format(module="converge")))
    assert "converge" in loaded
    assert heavy(loaded) == set()


def test_a_heavy_import_is_found() -> None:
    assert heavy(["converge", "asyncpg.pool", "trio"]) == {"asyncpg.pool", "trio"}
    assert heavy(["converge", "anyio", "asyncio.tasks", "tricolour"]) == set()


@pytest.mark.parametrize("package", PROJECTS)
def test_versions_of_dependencies_are_bounded_below_only(package: str) -> None:
    extras = PROJECTS[package].get("optional-dependencies", {})
    needed = [*PROJECTS[package]["dependencies"], *(line for lines in extras.values() for line in lines)]
    assert [line for line in needed if ">=" not in line or "," in line.partition(";")[0].partition("]")[2]] == []

"""The page of licences names each dependency and test server, with the licence that its own metadata says."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/licences.md").read_text()
CONSTRAINTS = (ROOT / "tests/constraints.txt").read_text()
ROWS = dict(
    row
    for row in re.findall(r"^\| ([\w.-]+) \| ([^|]+) \| [^|]*\|$", PAGE.split("## Test servers")[0], re.MULTILINE)
    if row[0] != "package"
)
COPYLEFT = re.compile(r"GPL|SSPL|EUPL|CDDL|EPL|MPL")
# Of the extra `testing`: about changes to hypothesis itself, and no driver.
ALLOWED = {"hypothesis"}
# How metadata spell what the page says by its SPDX name.
SPELLED = {
    "MIT": ("MIT",),
    "Apache-2.0": ("Apache", "Apache Software License"),
    "LGPL-3.0-or-later": ("LGPL",),
    "MPL-2.0": ("Mozilla Public License 2.0", "MPL 2.0"),
    "ZPL-2.1": ("ZPL 2.1",),
    "BSD-3-Clause": ("BSD",),
}


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement.strip())[0].lower().replace("_", "-")


def needed() -> Iterator[tuple[str, str]]:
    """The name of each dependency of a package or an extra, and whose it is."""
    for file in ROOT.glob("converge-*/pyproject.toml"):
        project = tomllib.loads(file.read_text())["project"]
        for owner, lines in {"": project["dependencies"], **project.get("optional-dependencies", {})}.items():
            yield from ((name_of(line), f"{project['name']}[{owner}]") for line in lines)


def said_by(name: str) -> str:
    """What the metadata of an installed package say of its licence; empty if they say nothing, or it is absent."""
    try:
        metadata = importlib.metadata.metadata(name).json
    except importlib.metadata.PackageNotFoundError:
        return ""  # for another Python, or another system
    kinds = [one for one in metadata.get("classifier", []) if one.startswith("License ::")]
    texts = [str(metadata.get(key, ""))[:100] for key in ("license_expression", "license")]
    return " ".join([*texts, *kinds]).strip()


def test_each_tested_package_and_each_dependency_has_a_row_and_every_row_a_package() -> None:
    tested = {name_of(line) for line in CONSTRAINTS.splitlines() if line.strip() and not line.startswith("#")}
    assert set(ROWS) == tested
    assert {name for name, _ in needed() if not name.startswith("converge-")} <= tested


def test_the_licence_of_each_is_what_its_metadata_say() -> None:
    wrong = {}
    for name, licence in ROWS.items():
        said = said_by(name)
        words = [licence, *(word for known in licence.split(" OR ") for word in SPELLED.get(known, ()))]
        if said and not any(word in said for word in words):
            wrong[name] = (licence, said)
    assert wrong == {}


def test_no_package_and_no_extra_brings_a_copyleft_driver() -> None:
    found = [(name, owner, ROWS[name]) for name, owner in needed() if not name.startswith("converge-")]
    assert [one for one in found if COPYLEFT.search(one[2]) and one[0] not in ALLOWED] == []


def test_each_package_of_debian_has_a_row() -> None:
    packages = [name for file in ROOT.glob(".ci/debian*.txt") for name in file.read_text().split()]
    assert packages and [name for name in packages if f"Debian's `{name}`" not in PAGE] == []

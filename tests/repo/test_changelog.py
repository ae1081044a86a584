"""Each package tells what changed: a fragment per change, folded into its changelog by a release."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\d+\.(?:added|changed|deprecated|removed|fixed|security)\.md")
# It may begin with a name in code.
SENTENCE = re.compile(r"[A-Z`].*\.", re.DOTALL)
PACKAGES = sorted(file.parent for file in ROOT.glob("converge-*/pyproject.toml"))


def bad_fragments(fragments: Mapping[str, str]) -> list[str]:
    """Fragments, by name, that a release could not fold in."""
    found = [f"{name}: not named like 142.added.md" for name in fragments if not NAME.fullmatch(name)]
    for name, text in fragments.items():
        if not SENTENCE.fullmatch(text.strip()):
            found.append(f"{name}: not a sentence")
    return found


def test_there_are_five_packages() -> None:
    assert len(PACKAGES) == 5


def test_every_fragment_is_well_named_and_a_sentence() -> None:
    for package in PACKAGES:
        assert bad_fragments({file.name: file.read_text() for file in (package / "changes").iterdir()}) == [], (
            package.name
        )


def test_a_version_is_in_the_changelog_or_has_fragments() -> None:
    for package in PACKAGES:
        version = tomllib.loads((package / "pyproject.toml").read_text())["project"]["version"]
        is_released = f"## {version}" in (package / "CHANGELOG.md").read_text()
        assert is_released or list((package / "changes").glob("*.md")), package.name


def test_a_bad_fragment_is_found() -> None:
    assert bad_fragments({"news.md": "A store."})
    assert bad_fragments({"12.added.md": " "})
    assert bad_fragments({"12.added.md": "stuff"})
    assert not bad_fragments({"12.fixed.md": "A late finisher is refused.\n"})

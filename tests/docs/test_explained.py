"""The pages that explain name everything that there is, and nothing that there is not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from converge import errors
from converge.model.keys import FAMILIES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CORE = ROOT / "converge-core/src/converge"
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md")), *sorted(ROOT.glob("converge-*/README.md"))]


def test_every_family_of_keys_is_explained_with_its_parts() -> None:
    page = (DOCS / "explanation/architecture.md").read_text()
    shown: dict[str, int] = {}
    for key in re.findall(r"`([a-z]+(?:/<[a-z ]+>)*)`", page):
        name = key.partition("/")[0]
        shown[name] = max(shown.get(name, 0), key.count("<"))
    assert {name: shown.get(name) for name in FAMILIES} == {name: family.arity for name, family in FAMILIES.items()}


def test_every_module_that_the_page_names_is_there() -> None:
    page = (DOCS / "explanation/architecture.md").read_text()
    folder, missing = "", []
    for row in re.findall(r"^\| (`[a-z]+/.*?) \|", page, re.MULTILINE):
        for name in re.findall(r"`([a-z/_.]+)`", row):
            folder, _, module = name.rpartition("/") if "/" in name else (folder, "", name)
            if not (CORE / folder / module).exists():
                missing.append(f"{folder}/{module}")
    assert missing == []


def _classes() -> Iterator[type[errors.ConvergeError]]:
    for _, cls in inspect.getmembers(errors, inspect.isclass):
        if issubclass(cls, errors.ConvergeError):
            yield cls


def test_every_error_is_on_the_page_below_its_branch() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `?(\w*)", (DOCS / "reference/errors.md").read_text(), re.MULTILINE))
    assert rows == {cls.__name__: cls.__bases__[0].__name__ for cls in _classes() if cls is not errors.ConvergeError}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text()):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_hold_no_white_space_that_word_counts_disagree_about() -> None:
    # README's first command counts these words, and `wc` is to find as many.
    odd = re.compile(r"[^\S \n]")
    assert [str(page.relative_to(ROOT)) for page in PAGES if odd.search(page.read_text())] == []

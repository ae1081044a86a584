"""One word for each idea: what the glossary says a thing is not called names nothing in code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/explanation/architecture.md"
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
FOREIGN = {"SESSION", "session", "_subscribe", "LOCAL_FUSE", "garbage", "num_tickets"}
"""Names from drivers and the system: settings of a database's session, Redis's SUBSCRIBE, FUSE, garbage, TLS."""


def refused_words(page: str) -> dict[str, str]:
    """Each word that the glossary refuses, with the word in its place."""
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]*?) ?\|$", page.partition("## Glossary")[2], re.MULTILINE)
    return {
        one.strip(): word for word, some in rows for one in some.split(",") if one.strip() not in ("", "not", "---")
    }


def named(source: str) -> Iterator[str]:
    """Every name that a module gives: to modules, classes, functions, arguments, variables and attributes."""
    for node in walked(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.asname or ""
        elif isinstance(node, ast.ExceptHandler):
            yield node.name or ""
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def wrong_names(source: str, refused: dict[str, str]) -> list[str]:
    """The names of a module that have a refused word in them, also in the plural."""
    return sorted(
        {
            f"{name}: {refused[word]}"
            for name in named(source)
            if name not in FOREIGN
            for part in WORD.findall(name)
            for word in (part.lower(), part.lower().removesuffix("s"))
            if word in refused
        }
    )


def test_a_word_that_the_glossary_refuses_names_nothing() -> None:
    refused = refused_words(PAGE.read_text())
    assert len(refused) > 20
    files = sorted(ROOT.glob("converge-*/src/**/*.py"))
    found = {str(file.relative_to(ROOT)): wrong_names(file.read_text(), refused) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


def test_no_word_is_both_used_and_refused() -> None:
    words = re.findall(r"^\| ([^|]+) \|", PAGE.read_text().partition("## Glossary")[2], re.MULTILINE)
    own = {one.strip() for word in words for one in word.split(",")}
    assert own & set(refused_words(PAGE.read_text())) == set()


def test_a_refused_word_is_found() -> None:
    head = "## Glossary\n\n| word | meaning | not |\n|---|---|---|\n"
    page = f"{head}| task | a piece of work | job, chore |\n| lane | x | |\n"
    assert refused_words(page) == {"job": "task", "chore": "task"}
    assert wrong_names("from a import b as chore", refused_words(page)) == ["chore: task"]
    source = "class JobList:\n    def add(self, old_jobs): self.chore = 1\n\ndef jobless(): ...\n"
    assert wrong_names(source, refused_words(page)) == ["JobList: task", "chore: task", "old_jobs: task"]

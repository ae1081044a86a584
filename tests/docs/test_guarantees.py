"""Each published guarantee names tests that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/guarantees.md"
NUMBERS = [f"G{number}" for number in range(1, 16)]
LINK = re.compile(r"^- \[`(\w+)`\]\(([^)]+)\)$", re.MULTILINE)


def sections() -> dict[str, str]:
    """The text of each guarantee by its name."""
    parts = re.split(r"^### (G\d+): .+$", PAGE.read_text(), flags=re.MULTILINE)
    return {name: text.partition("\n## ")[0] for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    """The names of the tests that a file defines, at its top or in its classes."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def test_every_guarantee_is_published_once_and_in_order() -> None:
    assert re.findall(r"^### (G\d+):", PAGE.read_text(), re.MULTILINE) == NUMBERS


@pytest.mark.parametrize("name", NUMBERS)
def test_a_guarantee_names_tests_that_are_there(name: str) -> None:
    text = sections()[name]
    links = LINK.findall(text)
    assert links, f"{name} names no test"
    assert len(links) == text.count("\n- "), f"{name} has a line in another form than - [`test_name`](path)"
    for test, target in links:
        path = (PAGE.parent / target).resolve()
        assert path.is_relative_to(ROOT) and path.is_file(), f"{name}: {target} is not there"
        assert test in names_of_tests(path), f"{name}: {target} has no {test}"


def test_a_name_that_is_not_there_would_be_found() -> None:
    assert "test_a_name_that_is_not_there_would_be_found" in names_of_tests(Path(__file__))
    assert "test_of_nothing" not in names_of_tests(Path(__file__))

"""A docstring of a function says what it does, in the imperative: "Return whether", not "Tell whether" or "Whether"."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFUSED = frozenset(("Tell whether", "Tells", "Whether", "How many", "Returns", "Said", "Says", "Answers", "Gives"))
"""Beginnings that stand for "Return", or for nothing that a function does."""


def wrong_beginnings(source: str) -> list[str]:
    """The functions whose docstring begins otherwise; a property is a thing, and may begin with what it is."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = {getattr(one, "id", getattr(one, "attr", "")) for one in node.decorator_list}
            words = (ast.get_docstring(node) or "").split()
            if not names & {"property", "cached_property"} and {" ".join(words[:2]), *words[:1]} & REFUSED:
                found.append(f"{node.name}: {' '.join(words[:4])}")
    return found


def test_docstrings_of_functions_are_in_the_imperative() -> None:
    files = sorted(ROOT.glob("converge-*/src/**/*.py"))
    assert {str(file.relative_to(ROOT)): found for file in files if (found := wrong_beginnings(file.read_text()))} == {}


def test_another_beginning_is_found() -> None:
    assert wrong_beginnings('def f():\n    """Tell whether it is."""') == ["f: Tell whether it is."]
    assert wrong_beginnings('async def f():\n    """Returns it."""')
    assert not wrong_beginnings(
        'def f():\n    """Return whether it is."""\n@property\ndef g():\n    """Whether it is."""'
    )

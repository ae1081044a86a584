"""A module can be read in one sitting, a function on one screen."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULE_LINES = 600
FUNCTION_LINES = 70


def oversized(source: str) -> list[str]:
    """The module and its functions that are too long."""
    lines = source.count("\n") + 1
    found = [f"module: {lines} lines"] if lines > MODULE_LINES + 1 else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"{node.name}: {length} lines")
    return found


def test_modules_and_functions_are_short() -> None:
    files = sorted([*ROOT.glob("converge-*/src/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/**/*.py")])
    assert {str(file.relative_to(ROOT)): found for file in files if (found := oversized(file.read_text()))} == {}


def test_a_long_module_is_found() -> None:
    assert oversized("a = 1\n" * 601) == ["module: 602 lines"]
    assert not oversized("a = 1\n" * 600)


def test_a_long_function_is_found() -> None:
    assert oversized("async def f():\n" + "    a = 1\n" * 70) == ["f: 71 lines"]
    assert not oversized("def f():\n" + "    a = 1\n" * 69)

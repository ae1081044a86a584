"""A module can be read in one sitting, a function on one screen."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULE_LINES = 600
FUNCTION_LINES = 70
# One list of short classes, which belongs in one place (test_errors.py).
LISTS = [ROOT / "converge-core/src/converge/errors.py"]


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
    files = {*ROOT.glob("converge-*/src/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/**/*.py")}
    files -= set(LISTS)
    assert {
        str(file.relative_to(ROOT)): found for file in sorted(files) if (found := oversized(file.read_text()))
    } == {}


def test_a_long_module_is_found() -> None:
    assert oversized("a = 1\n" * 601) == ["module: 602 lines"]
    assert not oversized("a = 1\n" * 600)


def test_a_long_function_is_found() -> None:
    assert oversized("async def f():\n" + "    a = 1\n" * 70) == ["f: 71 lines"]
    assert not oversized("def f():\n" + "    a = 1\n" * 69)

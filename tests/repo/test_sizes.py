"""A module can be read in one sitting, a function on one screen."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
MODULE_LINES = 600
FUNCTION_LINES = 70
LINE_CHARS = 120
PRAGMA = re.compile(r"\s+# (?:noqa|type: ignore|pyright: ignore).*")
"""What a checker wants at the end of a line; it counts for nothing."""
# One list of short classes, which belongs in one place (test_errors.py).
LISTS = [ROOT / "converge-core/src/converge/errors.py"]


def oversized(source: str) -> list[str]:
    """The module and its functions that are too long."""
    lines = source.count("\n") + 1
    found = [f"module: {lines} lines"] if lines > MODULE_LINES + 1 else []
    for node in walked(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"{node.name}: {length} lines")
    return found


def wide_lines(source: str) -> list[int]:
    """The lines that are too long."""
    return [
        number for number, line in enumerate(source.splitlines(), 1) if len(PRAGMA.sub("", line, count=1)) > LINE_CHARS
    ]


def _files() -> set[Path]:
    return {*ROOT.glob("converge-*/src/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/**/*.py")}


def test_lines_are_short() -> None:
    scripts = ROOT / "tests/faults/scripts"  # kept as they were reported
    files = sorted(file for file in _files() if scripts not in file.parents)
    assert {str(file.relative_to(ROOT)): found for file in files if (found := wide_lines(file.read_text()))} == {}


def test_modules_and_functions_are_short() -> None:
    files = _files() - set(LISTS)
    assert {
        str(file.relative_to(ROOT)): found for file in sorted(files) if (found := oversized(file.read_text()))
    } == {}


def test_a_long_module_is_found() -> None:
    assert oversized("a = 1\n" * 601) == ["module: 602 lines"]
    assert not oversized("a = 1\n" * 600)


def test_a_long_function_is_found() -> None:
    assert oversized("async def f():\n" + "    a = 1\n" * 70) == ["f: 71 lines"]
    assert not oversized("def f():\n" + "    a = 1\n" * 69)


def test_a_wide_line_is_found() -> None:
    assert wide_lines("a = 1\nb = '" + "x" * 116 + "'\n") == [2]
    assert not wide_lines("a = '" + "x" * 100 + "'  # type: ignore[misc]  # no other type fits here")

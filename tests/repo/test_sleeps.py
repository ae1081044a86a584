"""A test waits for what it is about, not for time: a sleep says on its line which time has to pass."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
LOOPS = (ast.While, ast.For, ast.AsyncFor)
INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def sleeps(source: str) -> list[int]:
    """The lines where a test itself sleeps, in no loop that looks again, and does not say why."""
    lines, found = source.splitlines(), []
    for test in walked(source):
        if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) and test.name.startswith("test_"):
            calls = [node for node in _own(test) if isinstance(node, ast.Call) and _is_sleep(node)]
            found += [call.lineno for call in calls if "  # " not in lines[call.lineno - 1]]
    return sorted(found)


def _own(test: ast.AST) -> Iterator[ast.AST]:
    """What stands in a test, but not in its loops, nor in the functions that it defines: those play a part in it."""
    for node in ast.iter_child_nodes(test):
        if not isinstance(node, (*LOOPS, *INNER)):
            yield node
            yield from _own(node)


def _is_sleep(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    is_nothing = bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0
    return name == "sleep" and not is_nothing


def test_a_test_that_sleeps_says_which_time_has_to_pass() -> None:
    scripts = ROOT / "tests/faults/scripts"  # kept as they were reported
    files = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("converge-core/src/converge/testing/**/*.py")]
    files = sorted(file for file in files if scripts not in file.parents)
    assert {str(file.relative_to(ROOT)): found for file in files if (found := sleeps(file.read_text()))} == {}


def test_a_sleep_without_a_reason_is_found() -> None:
    assert sleeps("async def test_x():\n    with a:\n        await anyio.sleep(0.2)\n") == [3]
    assert sleeps("def test_x():\n    time.sleep(DELAY_SEC)\n") == [2]
    for right in ("time.sleep(1)  # the lease has to end", "anyio.sleep(0)", "while a:\n        time.sleep(0.1)"):
        assert not sleeps(f"def test_x():\n    {right}\n")
    assert not sleeps("def test_x():\n    def slow():\n        time.sleep(1)\n")

"""No task of a node is started but behind its boundary, which lets none of them end it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from trees import parsed, walked

from converge.foreign import LOGS

ROOT = Path(__file__).parents[2]
CORE = ROOT / "converge-core/src/converge"
BOUNDARY = "runtime/agents/background.py"


def starts(source: str) -> Iterator[int]:
    """The lines that start a task in a group which is not the `async with` block around them."""
    yield from _starts(parsed(source), frozenset())


def _starts(node: ast.AST, own: frozenset[str]) -> Iterator[int]:
    if isinstance(node, ast.AsyncWith):
        own |= {_name(item.optional_vars) for item in node.items if _is_group(item)}
    if isinstance(node, ast.Attribute) and node.attr in ("start_soon", "create_task") and _name(node.value) not in own:
        yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _starts(child, own)


def _name(node: ast.AST | None) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_group(item: ast.withitem) -> bool:
    call = item.context_expr
    return isinstance(call, ast.Call) and ast.unparse(call.func).endswith("create_task_group")


def test_every_background_task_is_started_behind_the_boundary() -> None:
    folders = ("runtime", "services", "operations")
    files = [file for folder in folders for file in sorted((CORE / folder).rglob("*.py"))]
    found = {str(file.relative_to(CORE)): list(starts(file.read_text())) for file in files}
    assert {name: lines for name, lines in found.items() if lines and name != BOUNDARY} == {}


def test_no_thread_of_the_nodes_waits_for_one_that_user_code_may_hold() -> None:
    """The limit of an event loop's threads is everybody's; `threads` passes it by, and the boundary has its own."""
    folders = ("runtime", "services", "operations", "builtin", "net")
    files = [file for folder in folders for file in sorted((CORE / folder).rglob("*.py"))]
    asking = [file for file in files if re.search(r"(?<!from_)\bthread\.run_sync\(|getaddrinfo\(", _awaited(file))]
    assert [file.name for file in asking] == ["boundary.py"]


def test_every_log_of_the_kernels_is_guarded_before_user_code_runs() -> None:
    """Also that of a module which is imported later: its name is known."""
    files = [file.read_text() for file in CORE.rglob("*.py")]
    assert {name for text in files for name in re.findall(r'getLogger\("converge\.(.+?)"\)', text)} == set(LOGS.split())


def _awaited(file: Path) -> str:
    calls = (node for node in walked(file.read_text()) if isinstance(node, ast.Await))
    return "\n".join(ast.unparse(node).replace("to_thread", "thread") for node in calls)


def test_what_is_wrong_is_found() -> None:
    assert list(starts("async def f(group):\n    group.start_soon(g)\n")) == [2]
    assert list(starts("def f(self):\n    self._group.start_soon(g)\n")) == [2]
    block = "async def f():\n    async with anyio.create_task_group() as group:\n        group.start_soon(g)\n"
    assert list(starts(block)) == []
    assert list(starts(f"{block}    group.start_soon(g)\n")) == [4]

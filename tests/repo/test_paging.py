"""Only one module goes on after a page of a scan, so that no other loop can skip or repeat a key."""

from __future__ import annotations

import ast
from pathlib import Path

from trees import walked

CORE = next(Path(__file__).parents[2].glob("converge-core/src/converge"))

PAGING = {
    "services/store/pages.py": "the one way",
    "services/tasks/retention.py": "its calls look at several prefixes at once",
    "contracts/store.py": "the inherited count, below the services",
    "contracts/_take.py": "the inherited take, whose ranges its caller names",
    "testing/_store/": "the kit tests what a range after a key holds",
}


def goes_on(source: str) -> list[int]:
    """Return the lines with a range that begins after a key, but for those of a take."""
    taken = {
        id(inner)
        for node in walked(source)
        if isinstance(node, ast.Call) and _name(node.func) == "Take"
        for inner in ast.walk(node)
    }
    return [
        node.lineno
        for node in walked(source)
        if isinstance(node, ast.Call) and _name(node.func) == "Range" and id(node) not in taken
        if any(not (isinstance(after, ast.Constant) and after.value is None) for after in _after(node))
    ]


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _after(call: ast.Call) -> list[ast.expr]:
    return [*call.args[1:2], *(one.value for one in call.keywords if one.arg == "after")]


def test_only_the_named_modules_read_on_after_a_page() -> None:
    found = {str(file.relative_to(CORE)) for file in CORE.rglob("*.py") if goes_on(file.read_text())}
    assert {file for file in found if not file.startswith(tuple(PAGING))} == set()
    assert [place for place in PAGING if not any(file.startswith(place) for file in found)] == []


def test_each_way_to_read_on_is_found() -> None:
    assert goes_on("(page,) = await store.scan([Range(prefix, after, 200)])")
    assert goes_on("ranges = [contracts.Range(prefix, after=page[-1].key[1:])]")
    assert goes_on("await store.scan([Range(prefix, after, 1) for prefix, after in due.items()])")


def test_a_first_page_and_the_ranges_of_a_take_are_none() -> None:
    assert not goes_on("await store.scan([Range(prefix, None, 1) for prefix in prefixes])")
    assert not goes_on("await store.scan([Range(prefix)])")
    assert not goes_on("Take([Range(READY(lane), before(head)) for lane in lanes], 4, HELD(lease), nonce, (), ())")

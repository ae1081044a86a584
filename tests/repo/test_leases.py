"""A machine may stand still for a second or two at any moment: a lease that does not outlast that says why."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import walked

ROOT = Path(__file__).parents[2]
LEAST_SEC = 5.0
OF_A_LEASE = re.compile(r"leases?_sec\b", re.IGNORECASE)


def short_leases(source: str) -> list[int]:
    """The lines with a lease under five seconds, unless they, or those before them, say why."""
    lines = source.splitlines()
    found = {value.lineno for node in walked(source) for name, value in _named(node) if _is_short(name, value)}
    return sorted(line for line in found if "# short: " not in "".join(lines[max(0, line - 2) : line]))


def _named(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Whatever a node gives a name to: arguments, their defaults, variables."""
    if isinstance(node, ast.keyword):
        yield node.arg or "", node.value
    elif isinstance(node, ast.arguments):
        places = [*node.posonlyargs, *node.args]
        places = places[len(places) - len(node.defaults) :]
        given = [*zip(places, node.defaults, strict=True), *zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        yield from ((one.arg, value) for one, value in given if value is not None)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            pairs: list[tuple[ast.expr, ast.expr]] = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            yield from ((one.id, value) for one, value in pairs if isinstance(one, ast.Name))


def _is_short(name: str, value: ast.expr) -> bool:
    if not OF_A_LEASE.search(name) or isinstance(value, ast.BinOp):
        return False
    parts = (part.value for part in ast.walk(value) if isinstance(part, ast.Constant))
    return any(isinstance(part, int | float) and part < LEAST_SEC for part in parts)


def test_a_short_lease_says_why() -> None:
    scripts = ROOT / "tests/faults/scripts"  # kept as they were reported
    folders = ("tests", "docs/examples", "converge-core/src/converge/testing")
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py") if scripts not in file.parents)
    texts = {str(file.relative_to(ROOT)): text for file in files if OF_A_LEASE.search(text := file.read_text())}
    assert {name: found for name, text in texts.items() if (found := short_leases(text))} == {}


@pytest.mark.parametrize(
    "wrong",
    [
        "Node(lease_sec=1)",
        "LEASE_SEC, POLL_SEC = 2.0, 9",
        "LEASES_SEC = (9, 0.5)",
        "lease_sec = 1 if IS_FULL else 9",
        "def f(*, lease_sec: float = 0.5): ...",
    ],
)
def test_a_short_lease_without_a_reason_is_found(wrong: str) -> None:
    assert short_leases(wrong) == [1]
    assert not short_leases(f"# short: it is to end\n{wrong}") and not short_leases(f"{wrong}  # short: it is to end")


@pytest.mark.parametrize("right", ["Node(lease_sec=9)", "LEASE_SEC, POLL_SEC = 9.0, 2", "lease_sec = call_sec * 2"])
def test_a_long_lease_needs_no_reason(right: str) -> None:
    assert not short_leases(right)

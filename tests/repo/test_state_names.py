"""One fact, one owner: the states of a task are named in one module, and no store knows them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
OWNER = ROOT / "converge-core/src/converge/machines/task.py"
STATES = ("pending", "assigned", "completed", "failed", "cancelled")
QUOTED = re.compile(r"""(["'`])(?:{})\1""".format("|".join(STATES)), re.IGNORECASE)
WORD = re.compile(rf"\b(?:{'|'.join(STATES)})\b", re.IGNORECASE)


def named_states(source: str, *, anywhere: bool = False) -> list[str]:
    """Where a module names a state: as a text, or as a member of a class; `anywhere`: inside any text, as in SQL."""
    prose = {id(text) for text in _docstrings(source)}
    found = []
    for node in walked(source):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            is_named = (
                node.value.strip().casefold() in STATES
                or QUOTED.search(node.value)
                or (anywhere and WORD.search(node.value))
            )
            if is_named:
                found.append(f"line {node.lineno}: {node.value!r}")
        elif isinstance(node, ast.ClassDef):
            found += [f"line {name.lineno}: {name.id}" for name in _members(node) if name.id.casefold() in STATES]
    return found


def _docstrings(source: str) -> Iterator[ast.Constant]:
    for node in walked(source):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def _members(node: ast.ClassDef) -> Iterator[ast.Name]:
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            yield from (target for target in statement.targets if isinstance(target, ast.Name) and target.id.isupper())


def _sources() -> list[Path]:
    return sorted(file for file in ROOT.glob("converge-*/src/**/*.py") if file != OWNER)


def test_only_the_task_machine_names_the_states_of_a_task() -> None:
    found = {str(file.relative_to(ROOT)): named for file in _sources() if (named := named_states(file.read_text()))}
    assert found == {}


def test_no_lua_script_names_a_state() -> None:
    files = sorted(ROOT.glob("converge-*/src/**/*.lua"))
    assert [str(file.relative_to(ROOT)) for file in files if WORD.search(file.read_text())] == []


def test_no_sql_statement_names_a_state() -> None:
    files = sorted(ROOT.glob("converge-store-sql/src/**/*.py")) + sorted(
        ROOT.glob("converge-core/src/converge/builtin/file/*.py")
    )
    found = {
        str(file.relative_to(ROOT)): named for file in files if (named := named_states(file.read_text(), anywhere=True))
    }
    assert found == {}


def test_the_task_machine_is_where_the_states_are() -> None:
    assert {name.split(": ")[1].strip("'").casefold() for name in named_states(OWNER.read_text())} >= set(STATES)


def test_a_state_that_is_named_elsewhere_is_found() -> None:
    assert named_states("if task.state == 'pending': pass")
    assert named_states("class State:\n    FAILED = 3")
    assert named_states("QUERY = \"select id from tasks where state = 'COMPLETED'\"")
    assert named_states("label = f'{count} ' + 'Cancelled'")
    assert named_states('QUERY = "update t set failed = 1"', anywhere=True)
    assert WORD.search("redis.call('HSET', key, 'state', 'ASSIGNED')")


def test_prose_and_references_name_no_state() -> None:
    assert not named_states('"""A task that is pending."""\nreason = "the upload failed"\nstate = TaskState.PENDING')

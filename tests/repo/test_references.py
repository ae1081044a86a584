"""What a docstring names in backticks as `Class.member` is there: a rename leaves no name behind that leads nowhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from trees import parsed

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(_?[A-Z]\w*[a-z]\w*)\.(\w+)(?:\([^`]*\))?`")


def members(trees: list[ast.Module]) -> dict[str, set[str]]:
    """By class, the names that are defined or set in it, or in a class of its bases by name."""
    own: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if not isinstance(node, ast.ClassDef):
            continue
        names = own.setdefault(node.name, set())
        bases.setdefault(node.name, set()).update(ast.unparse(base).partition("[")[0] for base in node.bases)
        for part in ast.walk(node):
            match part:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Attribute(value=ast.Name(id="self"), attr=name):
                    names.add(name)
                case ast.Constant(value=str(name)):  # __slots__
                    names.add(name)
    return {name: _inherited(name, own, bases, set()) for name in own}


def _inherited(name: str, own: Mapping[str, set[str]], bases: Mapping[str, set[str]], seen: set[str]) -> set[str]:
    if name in seen or name not in own:
        return set()
    seen.add(name)
    return own[name].union(*(_inherited(base.rpartition(".")[2], own, bases, seen) for base in bases[name]))


def named(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What the docstrings of a module name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from NAMED.findall(node.value.value)


def missing(trees: Mapping[str, ast.Module], known: Mapping[str, set[str]]) -> list[str]:
    """The references that lead nowhere; of classes that are not ours nothing is known."""
    return [
        f"{file}: `{owner}.{name}`"
        for file, tree in trees.items()
        for owner, name in named(tree)
        if owner in known and name not in known[owner]
    ]


def test_what_docstrings_name_is_there() -> None:
    trees = {
        str(file.relative_to(ROOT)): parsed(file.read_text()) for file in sorted(ROOT.glob("converge-*/src/**/*.py"))
    }
    assert missing(trees, members(list(trees.values()))) == []


def test_a_reference_to_what_was_renamed_is_found() -> None:
    text = '"""See `Ring.take`, `Ring.acquire()`, `Other.one`."""'
    tree = parsed(f"class Ring:\n    {text}\n    def acquire(self): ...\n")
    assert missing({"ring.py": tree}, members([tree])) == ["ring.py: `Ring.take`"]

"""Every error of Converge is in one module, and in the tree that its docstring draws."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from trees import parsed, walked

ROOT = Path(__file__).parents[2]
OWNER = ROOT / "converge-core/src/converge/errors.py"


def bases_of(source: str) -> dict[str, list[str]]:
    """The classes of a module, each with the names of its bases as they are where they come from."""
    nodes = list(walked(source))
    imported = [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    own = {alias.asname: alias.name for alias in imported if alias.asname}
    return {
        node.name: [
            base.attr if isinstance(base, ast.Attribute) else own.get(name := getattr(base, "id", ""), name)
            for base in node.bases
        ]
        for node in nodes
        if isinstance(node, ast.ClassDef)
    }


def drawn(source: str) -> dict[str, str]:
    """The errors of the drawn tree, each with its branch: the line above that is indented less, or its own line's."""
    tree, above = dict[str, str](), list[tuple[int, str]]()
    lines = (ast.get_docstring(parsed(source), clean=False) or "").splitlines()
    for line in lines:
        depth = len(line) - len(line.lstrip())
        names = re.findall(r"\b[A-Z]\w+[a-z]\b", line) if depth >= 4 else []
        if depth % 4 == 0 and 4 <= depth <= 16 and names:
            above = [one for one in above if one[0] < depth]
            tree[names[0]] = above[-1][1] if above else ""
            above.append((depth, names[0]))
            names = names[1:]
        for name in names:
            tree.setdefault(name, above[-1][1])
    return tree


def errors_elsewhere(source: str, errors: Mapping[str, list[str]]) -> Iterator[str]:
    """The classes of a module that are errors of Converge."""
    yield from (name for name, bases in bases_of(source).items() if set(bases) & set(errors))


def caught_twice(source: str) -> list[str]:
    """Where an `except` names a class beside its own base."""
    if "except (" not in source:
        return []
    found, errors = [], _owned() | bases_of(source)
    for node in walked(source):
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Tuple):
            names = [one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in node.type.elts]
            found += [f"line {node.lineno}: {name}" for name in names if set(names) & set(_above(name, errors))]
    return found


@cache
def _owned() -> dict[str, list[str]]:
    return bases_of(OWNER.read_text())


def _above(name: str, errors: Mapping[str, list[str]]) -> Iterator[str]:
    for base in errors.get(name, []):
        yield base
        yield from _above(base, errors)
    kind = getattr(builtins, name, None)
    if isinstance(kind, type):
        yield from (base.__name__ for base in kind.__mro__[1:])


def _sources() -> list[Path]:
    """The sources; the kit has errors of its own, which no program meets."""
    return [file for file in sorted(ROOT.glob("converge-*/src/**/*.py")) if "testing" not in file.parts]


def test_every_error_is_in_the_drawn_tree_below_its_base() -> None:
    source = OWNER.read_text()
    assert drawn(source) == {
        name: bases[0] if bases[0] != "Exception" else "" for name, bases in bases_of(source).items()
    }


def test_every_error_is_in_one_module() -> None:
    errors = bases_of(OWNER.read_text())
    found = {str(file.relative_to(ROOT)): list(errors_elsewhere(file.read_text(), errors)) for file in _sources()}
    assert {file: names for file, names in found.items() if names and file != str(OWNER.relative_to(ROOT))} == {}


def test_no_except_names_a_class_beside_its_own_base() -> None:
    scripts = ROOT / "tests/faults/scripts"  # kept as they were reported
    files = [*ROOT.glob("converge-*/src/**/*.py"), *ROOT.glob("tests/**/*.py")]
    files = [file for file in files if scripts not in file.parents]
    assert {str(file.relative_to(ROOT)): found for file in files if (found := caught_twice(file.read_text()))} == {}


def test_what_is_wrong_is_found() -> None:
    source = '"""X.\n\n    Top\n        Branch    do: One, Two\n            Deep    Three\n"""\n'
    assert drawn(source) == {
        "Top": "",
        "Branch": "Top",
        "One": "Branch",
        "Two": "Branch",
        "Deep": "Branch",
        "Three": "Deep",
    }
    for mine in ("class Mine(StoreError): pass", "from e import StoreError as Base\nclass Mine(Base): pass"):
        assert list(errors_elsewhere(mine, {"StoreError": []})) == ["Mine"]
    assert caught_twice("try: pass\nexcept (StoreBusy, StoreError): pass") == ["line 2: StoreBusy"]
    assert caught_twice("try: pass\nexcept (OSError, TimeoutError): pass") == ["line 2: TimeoutError"]
    assert not caught_twice("try: pass\nexcept (StoreBusy, StoreFull, ValueError): pass")

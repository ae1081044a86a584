"""Objects are whole when they are made, and made of few things."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
PARAMETERS = 6
MAKERS = ("__init__", "__new__", "__attrs_post_init__", "__set_name__")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def classes(source: str) -> list[ast.ClassDef]:
    """The classes of a module."""
    return [node for node in walked(source) if isinstance(node, ast.ClassDef)]


def _methods(cls: ast.ClassDef) -> Iterator[Function]:
    yield from (node for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _decorators(method: Function) -> set[str]:
    return {one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in method.decorator_list}


def _sets(method: Function) -> set[str]:
    """The attributes of its object that a method sets; an annotation alone sets none."""
    if not method.args.args or "staticmethod" in _decorators(method):
        return set()
    own, found = method.args.args[0].arg, set[str]()
    declared = [node.target for node in ast.walk(method) if isinstance(node, ast.AnnAssign) and node.value is None]
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node not in declared:
            found |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == own else set()
    return found


def _declared(cls: ast.ClassDef) -> set[str]:
    """What a class has itself: class attributes with a value, an attrs class's fields, properties that can be set."""
    found = {name for method in _methods(cls) if "setter" in _decorators(method) for name in [method.name]}
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and (node.value or cls.decorator_list):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found.union(*(_sets(method) for method in _methods(cls) if method.name in MAKERS))


def set_late(cls: ast.ClassDef, known: Mapping[str, ast.ClassDef]) -> set[str]:
    """The attributes that a class first sets outside `__init__`, and none of its known bases has."""
    late = set[str]().union(*(_sets(method) for method in _methods(cls) if method.name not in MAKERS))
    late -= {name for method in _methods(cls) if "classmethod" in _decorators(method) for name in _sets(method)}
    above, bases = [cls], set[str]()
    while above:
        one = above.pop()
        bases |= _declared(one)
        above += [known[base.id] for base in one.bases if isinstance(base, ast.Name) and base.id in known]
    return late - bases


def parameters(cls: ast.ClassDef) -> int:
    """How many a class's `__init__` takes."""
    for method in _methods(cls):
        if method.name == "__init__":
            return len(method.args.posonlyargs) + len(method.args.args) + len(method.args.kwonlyargs) - 1
    return 0


def poked_in(source: str) -> list[int]:
    """The lines that give an object of another a callback after it was made."""
    return [
        node.lineno
        for node in walked(source)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and re.match("_?on_", node.attr)
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]


def _all() -> list[ast.ClassDef]:
    files = sorted(ROOT.glob("converge-*/src/**/*.py"))
    return [
        cls for file in files for cls in classes(file.read_text()) if not cls.name.endswith(("Clauses", "Contract"))
    ]


def test_every_attribute_is_first_set_when_its_object_is_made() -> None:
    all_classes = _all()
    known = {cls.name: cls for cls in all_classes}
    late = {cls.name: set_late(cls, known) for cls in all_classes}
    assert {name: names for name, names in late.items() if names} == {}


def test_no_constructor_takes_more_than_six_parameters() -> None:
    found = {cls.name: parameters(cls) for cls in _all()}
    assert {name: count for name, count in found.items() if count > PARAMETERS} == {}


def test_a_callback_is_passed_and_not_poked_in_later() -> None:
    files = sorted(ROOT.glob("converge-*/src/**/*.py"))
    assert {str(file.relative_to(ROOT)): found for file in files if (found := poked_in(file.read_text()))} == {}


def test_what_is_wrong_is_found() -> None:
    assert poked_in("post.on_stored = f\nself.post._on_mail = f\n") == [1, 2]
    assert not poked_in("self._on_mail = f\nself.once = 1\n")
    late = "class A:\n    def __init__(self):\n        self.a = 1\n        self.c: int\n"
    (cls,) = classes(late + "    def f(self):\n        self.b = self.a\n        self.c = 2\n")
    assert set_late(cls, {}) == {"b", "c"}
    (many,) = classes("class A:\n    def __init__(self, a, b, c, /, d, e, *, f, g): ...\n")
    assert parameters(many) == 7


def test_what_is_right_is_not_found() -> None:
    base, child = classes("class A:\n    a: int = 1\nclass B(A):\n    def f(self):\n        self.a = 2\n")
    assert not set_late(child, {"A": base})
    (record,) = classes("@attrs.define\nclass A:\n    a: int\n    def f(self):\n        self.a = 2\n")
    assert not set_late(record, {})

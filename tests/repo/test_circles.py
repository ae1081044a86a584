"""The modules of the kernel import one another in one direction, also where only a type is needed, and stand in folders
that can be looked over.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
CORE = ROOT / "converge-core/src"
MODULES = 16
ASYNCIO = frozenset[str](
    (
        "converge.testing._calls.waiting",
        "converge.testing.fixtures",
        "converge.services.store.detached",
        "converge.runtime.agents.boundary",
        "converge.cli.loop",
        "converge.services.messages.waits",
    )
)
"""Modules that may name asyncio: all else goes through anyio, so that it works on trio as well. The boundary around
user code looks at tasks of both, the command has a loop of its own, and waits for receipts are asyncio's futures there.
"""


def imports(module: str, is_package: bool, source: str, modules: frozenset[str]) -> Iterator[str]:
    """The other modules of the kernel that a module imports, for types or inside functions too."""
    package = module if is_package else module.rpartition(".")[0]
    for node in walked(source):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                yield target


def circles(graph: Mapping[str, frozenset[str]]) -> set[str]:
    """The modules that can be reached from themselves."""
    left = dict(graph)
    while True:  # what imports nothing that is left, or is imported by nothing that is left, is in no circle
        wanted = set[str]().union(*left.values()) if left else set()
        kept = {
            name: some & frozenset(left) for name, some in left.items() if some & frozenset(left) and name in wanted
        }
        if kept == left:
            return set(left)
        left = kept


def _graph() -> dict[str, frozenset[str]]:
    files = {
        ".".join(file.relative_to(CORE).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted(CORE.glob("converge/**/*.py"))
    }
    names = frozenset(files)
    return {
        name: frozenset(imports(name, file.stem == "__init__", file.read_text(), names)) for name, file in files.items()
    }


def test_modules_import_one_another_in_no_circle() -> None:
    assert circles(_graph()) == set()


def test_a_folder_has_few_modules() -> None:
    counts = Counter(
        file.parent.relative_to(ROOT) for file in ROOT.glob("converge-*/src/**/*.py") if file.stem != "__init__"
    )
    assert {str(folder): count for folder, count in counts.items() if count > MODULES} == {}


def test_only_named_modules_know_asyncio() -> None:
    found = set()
    for file in CORE.glob("converge/**/*.py"):
        if {"asyncio", "trio", "uvloop"} & set(named(file.read_text())):
            found.add(".".join(file.relative_to(CORE).with_suffix("").parts))
    assert found <= ASYNCIO


def named(source: str) -> Iterator[str]:
    """The packages that a module imports."""
    for node in walked(source):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def test_what_is_wrong_is_found() -> None:
    names = frozenset(("converge.a", "converge.b", "converge.c"))
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from converge.b import B\n"
    assert set(imports("converge.a", False, lazy, names)) == {"converge.b"}
    assert set(imports("converge.a", False, "def f():\n    from .c import C\n", names)) == {"converge.c"}
    graph = {"a": frozenset(("b",)), "b": frozenset(("c",)), "c": frozenset(("b",)), "d": frozenset(("a",))}
    assert circles(graph) == {"b", "c"}
    assert "asyncio" in set(named("def f():\n    import asyncio.events\n"))

"""The directions of imports: each layer of the kernel sees only those below it, plugins see the kernel's public modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGINS = ("converge_store_redis", "converge_store_sql", "converge_transport_tcp", "converge_transport_ws")
ROWS = (
    ("errors", "codec", "ids", "env", "urls", "settings", "schema"),
    ("model",),
    ("machines",),
    ("contracts", "hookspecs", "plugins"),
    ("services",),
    ("runtime",),
    ("cli", "builtin", "testing"),
)
RANKS = {part: rank for rank, row in enumerate(ROWS) for part in row}
EDGES = ROWS[-1]
# Only what stands outside the layers, as users do, may use the names that the package re-exports.
USERS = ("cli", "testing")


def _modules(*packages: str) -> Iterator[tuple[str, str]]:
    for package in packages:
        folder = next(ROOT.glob(f"converge-*/src/{package}"))
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder.parent).with_suffix("").parts
            yield ".".join(parts), file.read_text()


def imported(module: str, source: str) -> Iterator[str]:
    """Every dotted name that a module imports, at its top or inside functions; `from a import b` gives `a.b`."""
    package = module.removesuffix(".__init__") if module.endswith(".__init__") else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong_way_imports(module: str, source: str) -> list[str]:
    """What a module of the kernel imports from beside or above its layer."""
    if module in ("converge.__init__", "converge.__main__"):
        return []
    part = module.split(".")[1]
    if part not in RANKS:
        return [f"{module} belongs to no layer"]
    return [f"{module} imports {name}" for name in imported(module, source) if not _is_allowed(part, name.split("."))]


def _is_allowed(part: str, name: list[str]) -> bool:
    if name[0] in PLUGINS:
        return False
    if name[0] != "converge":
        return True
    target = name[1] if len(name) > 1 else ""
    if target not in RANKS:
        return part in USERS
    return target == part or (target not in EDGES and RANKS[target] <= RANKS[part])


def wrong_plugin_imports(module: str, source: str) -> list[str]:
    """What a plugin imports from another plugin, or from a module or under a name of the kernel that begins with `_`."""
    own = module.split(".")[0]
    found = []
    for name in imported(module, source):
        parts = name.split(".")
        is_other_plugin = parts[0] in PLUGINS and parts[0] != own
        is_private = parts[0] == "converge" and any(part.startswith("_") and not part.startswith("__") for part in parts)
        if is_other_plugin or is_private:
            found.append(f"{module} imports {name}")
    return found


def test_each_layer_imports_only_layers_below_it() -> None:
    assert [wrong for module, source in _modules("converge") for wrong in wrong_way_imports(module, source)] == []


def test_plugins_import_no_other_plugin_nor_private_modules_of_the_kernel() -> None:
    assert [wrong for module, source in _modules(*PLUGINS) for wrong in wrong_plugin_imports(module, source)] == []


def test_an_import_from_above_is_found() -> None:
    assert wrong_way_imports("converge.machines.task", "from converge.services.tasks import TaskManager")
    assert wrong_way_imports("converge.model.task", "from converge.machines import lane")
    assert wrong_way_imports("converge.errors", "from .model import task")
    assert wrong_way_imports("converge.services.tasks", "def f():\n    import converge.runtime.node")
    assert wrong_way_imports("converge.runtime.node", "from converge import builtin")
    assert wrong_way_imports("converge.cli.run", "from converge.builtin.memory import store")
    assert wrong_way_imports("converge.builtin.file.store", "from ...testing.fixtures import wait_until")
    assert wrong_way_imports("converge.runtime.node", "from converge import Task")
    assert wrong_way_imports("converge.plugins", "import converge_store_redis")
    assert wrong_way_imports("converge.helpers", "")


def test_an_import_from_below_is_right() -> None:
    assert not wrong_way_imports("converge.machines.task", "from converge.model.task import Task\nimport converge.errors")
    assert not wrong_way_imports("converge.machines.task", "from .lane import rank\nfrom ..model import keys\nimport attrs")
    assert not wrong_way_imports("converge.hookspecs", "from converge.contracts.store import StoreBackend")
    assert not wrong_way_imports("converge.cli.run", "from converge import Node\nfrom converge.runtime.config import load")
    assert not wrong_way_imports("converge.__init__", "from converge.builtin.memory import MemoryStore")


def test_a_wrong_import_of_a_plugin_is_found() -> None:
    assert wrong_plugin_imports("converge_store_sql.store", "import converge_store_redis.store")
    assert wrong_plugin_imports("converge_store_sql.store", "from converge.contracts._take import inherited")
    assert wrong_plugin_imports("converge_store_sql.store", "from converge.contracts.store import _private")
    assert not wrong_plugin_imports("converge_store_sql.store", "from converge.contracts.store import Store\nfrom ._errors import mapped")

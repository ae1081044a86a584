"""The directions of imports: each layer of the kernel sees only those below it, plugins see the kernel's public
modules.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
PLUGINS = ("converge_store_redis", "converge_store_sql", "converge_transport_tcp", "converge_transport_ws")
ROWS = (
    (
        "errors",
        "codec",
        "ids",
        "env",
        "foreign",
        "forks",
        "posix",
        "secret",
        "urls",
        "settings",
        "schema",
        "throttle",
        "sockets",
        "threads",
    ),
    ("model",),
    ("machines",),
    ("contracts", "hookspecs", "plugins", "net"),
    ("services",),
    ("runtime",),
    ("operations",),
    ("cli", "builtin", "testing", "agents", "logs", "transactions"),
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
    for node in walked(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


ROOMS = (
    ("services.store",),
    ("services.pools", "services.tasks", "services.discovery"),
    ("services.durable",),
    ("services.messages",),
    ("runtime.config", "runtime.keys", "runtime.agents", "runtime.attempts"),
    ("runtime.claiming", "runtime.network"),
    ("runtime.probes",),
    ("runtime",),
)
"""Rooms inside a layer, each row importing only rows below it; modules of `runtime` itself stand above its rooms."""


def room_of(module: str) -> tuple[int, str] | None:
    """Return the row and the name of the room that a module stands in; None outside the layers that have rooms."""
    parts = module.split(".")
    for rank, row in enumerate(ROOMS):
        for room in row:
            names = room.split(".")
            if parts[1 : 1 + len(names)] == names:
                return rank, room
    return None


def wrong_room_imports(module: str, source: str, modules: frozenset[str]) -> list[str]:
    """What a module imports from a room beside or above its own."""
    own, found = room_of(module), []
    for name in imported(module, source):
        target = name if name in modules else name.rpartition(".")[0]
        other = room_of(target) if target in modules else None
        if own and other and (other[0] > own[0] or (other[0] == own[0] and other[1] != own[1])):
            found.append(f"{module} imports {name}")
    return found


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
    """What a plugin imports from another plugin, or from a module or under a name of the kernel that begins with
    `_`.
    """
    own = module.split(".")[0]
    found = []
    for name in imported(module, source):
        parts = name.split(".")
        is_other_plugin = parts[0] in PLUGINS and parts[0] != own
        is_private = parts[0] == "converge" and any(
            part.startswith("_") and not part.startswith("__") for part in parts
        )
        if is_other_plugin or is_private:
            found.append(f"{module} imports {name}")
    return found


def test_each_layer_imports_only_layers_below_it() -> None:
    assert [wrong for module, source in _modules("converge") for wrong in wrong_way_imports(module, source)] == []


def test_each_room_imports_only_rooms_below_it() -> None:
    modules = dict(_modules("converge"))
    names = frozenset(name.removesuffix(".__init__") for name in modules)
    wrong = [one for module, source in modules.items() for one in wrong_room_imports(module, source, names)]
    assert wrong == []


def test_an_import_from_a_room_above_or_beside_is_found() -> None:
    names = frozenset(
        (
            "converge.services.store.lease",
            "converge.services.tasks.claim",
            "converge.services.pools",
            "converge.runtime.node",
        )
    )
    assert wrong_room_imports("converge.services.store.lease", "import converge.services.tasks.claim", names)
    assert wrong_room_imports("converge.services.pools", "from converge.services.tasks.claim import Claims", names)
    assert wrong_room_imports("converge.runtime.agents.agent", "from converge.runtime.node import Node", names)
    assert not wrong_room_imports("converge.services.tasks.claim", "from converge.services.store import lease", names)


def test_plugins_import_no_other_plugin_nor_private_modules_of_the_kernel() -> None:
    assert [wrong for module, source in _modules(*PLUGINS) for wrong in wrong_plugin_imports(module, source)] == []


def test_an_import_from_above_is_found() -> None:
    assert wrong_way_imports("converge.machines.task", "from converge.services.tasks.manager import TaskManager")
    assert wrong_way_imports("converge.model.task", "from converge.machines import lane")
    assert wrong_way_imports("converge.errors", "from .model import task")
    assert wrong_way_imports("converge.services.tasks.manager", "def f():\n    import converge.runtime.node")
    assert wrong_way_imports("converge.runtime.node", "from converge import builtin")
    assert wrong_way_imports("converge.cli.run", "from converge.builtin.memory import store")
    assert wrong_way_imports("converge.builtin.file.store", "from ...testing.fixtures import wait_until")
    assert wrong_way_imports("converge.runtime.node", "from converge import Task")
    assert wrong_way_imports("converge.plugins", "import converge_store_redis")
    assert wrong_way_imports("converge.helpers", "")


def test_an_import_from_below_is_right() -> None:
    assert not wrong_way_imports(
        "converge.machines.task", "from converge.model.task import Task\nimport converge.errors"
    )
    assert not wrong_way_imports(
        "converge.machines.task", "from .lane import rank\nfrom ..model import keys\nimport attrs"
    )
    assert not wrong_way_imports("converge.hookspecs", "from converge.contracts.store import StoreBackend")
    assert not wrong_way_imports(
        "converge.cli.run", "from converge import Node\nfrom converge.runtime.config.config import load"
    )
    assert not wrong_way_imports("converge.__init__", "from converge.builtin.memory import MemoryStore")


def test_a_wrong_import_of_a_plugin_is_found() -> None:
    assert wrong_plugin_imports("converge_store_sql.store", "import converge_store_redis.store")
    assert wrong_plugin_imports("converge_store_sql.store", "from converge.contracts._take import inherited")
    assert wrong_plugin_imports("converge_store_sql.store", "from converge.contracts.store import _private")
    assert not wrong_plugin_imports(
        "converge_store_sql.store", "from converge.contracts.store import Store\nfrom ._errors import mapped"
    )

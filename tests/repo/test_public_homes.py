"""Docs and examples import only modules that the page of public modules names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/api.md"
PLUGINS = ("converge_store_redis", "converge_store_sql", "converge_transport_tcp", "converge_transport_ws")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def public_modules(page: str) -> list[str]:
    """The modules that the page names, in its table."""
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `converge")]
    return [name for row in rows for name in re.findall(r"`([\w.]+)`", row)] + list(PLUGINS)


def not_public(source: str, public: list[str]) -> Iterator[str]:
    """What a piece of code imports from modules of Converge that are not public."""
    for node in walked(source):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name for name in names if _is_module(name)] or [node.module or ""]
        of_ours = [name for name in names if name.split(".")[0] in ("converge", *PLUGINS)]
        yield from (name for name in of_ours if name not in public)


def _is_module(name: str) -> bool:
    place = name.replace(".", "/")
    return any(ROOT.glob(f"converge-*/src/{place}")) or any(ROOT.glob(f"converge-*/src/{place}.py"))


def test_docs_import_only_public_modules() -> None:
    public, found = public_modules(PAGE.read_text()), dict[str, list[str]]()
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("converge-*/README.md")]:
        blocks = [block for text in PYTHON.findall(page.read_text()) for block in not_public(text, public)]
        found |= {str(page.relative_to(ROOT)): blocks} if blocks else {}
    for file in ROOT.glob("docs/**/*.py"):
        names = list(not_public(file.read_text(), public))
        found |= {str(file.relative_to(ROOT)): names} if names else {}
    assert found == {}


def test_every_public_module_is_there_and_says_what_is_public_in_it() -> None:
    modules = {name: import_module(name) for name in public_modules(PAGE.read_text())}
    assert len(modules) > 15
    assert [name for name, module in modules.items() if not (module.__doc__ or "").strip()] == []
    for module in modules.values():
        missing = [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
        assert missing == [], module.__name__


def test_an_import_that_is_not_public_is_found() -> None:
    public = public_modules("| `converge` | x |\n| `converge.agents`, `converge.logs` | y |\n")
    assert public[:3] == ["converge", "converge.agents", "converge.logs"]
    code = "from converge import Agent\nfrom converge.runtime.node import Node\nimport converge.operations.logs, json\n"
    assert list(not_public(code, public)) == ["converge.runtime.node", "converge.operations.logs"]
    assert list(not_public("from converge import agents, runtime\n", public)) == ["converge.runtime"]

"""The lower layers decide without acting: no coroutine, no clock, no random source, no socket."""

from __future__ import annotations

import ast
from pathlib import Path

from trees import walked

CORE = next(Path(__file__).parents[2].glob("converge-core/src/converge"))
# Modules that read a clock, draw randomness, open a socket, or wait.
IMPURE = {
    *("time", "random", "uuid", "secrets", "socket", "socketserver", "ssl", "select", "selectors"),
    *("asyncio", "anyio", "trio", "threading", "multiprocessing", "concurrent", "subprocess", "signal"),
}
# Calls that reach a clock or a random source through a module that is harmless otherwise.
IMPURE_CALLS = {"urandom", "getrandom", "now", "utcnow", "today", "generate", "generate_key", "getenv"}


def impurities(source: str) -> list[str]:
    """What in a module acts, or looks at the world."""
    found = []
    for node in walked(source):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(f"line {node.lineno}: {type(node).__name__}")
        elif isinstance(node, ast.Import):
            found += [
                f"line {node.lineno}: import {alias.name}" for alias in node.names if alias.name.split(".")[0] in IMPURE
            ]
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]} & IMPURE if not node.level else set()
            names |= {alias.name for alias in node.names if node.module == "os"} & IMPURE_CALLS
            names |= {alias.name for alias in node.names} & {"SYSTEM"}  # the environment that reads the real clock
            found += [f"line {node.lineno}: from {node.module} import {name}" for name in names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in IMPURE_CALLS:
            found.append(f"line {node.lineno}: a call of {node.func.attr}")
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("open", "input", "print")
        ):
            found.append(f"line {node.lineno}: a call of {node.func.id}")
    return found


def test_machines_and_model_hold_no_coroutine_clock_random_source_or_socket() -> None:
    files = sorted([*CORE.glob("machines/**/*.py"), *CORE.glob("model/**/*.py")])
    assert files
    assert {str(file.relative_to(CORE)): found for file in files if (found := impurities(file.read_text()))} == {}


def test_the_words_below_them_hold_no_coroutine() -> None:
    files = [file for file in sorted(CORE.glob("*.py")) if file.stem in ("errors", "codec", "ids", "env")]
    assert files
    nodes = [node for file in files for node in walked(file.read_text())]
    assert not [node.name for node in nodes if isinstance(node, ast.AsyncFunctionDef)]


def test_every_kind_of_impurity_is_found() -> None:
    samples = [
        *(
            "async def f(): pass",
            "import time",
            "import os.path, random",
            "from uuid import uuid4",
            "from socket import socket",
        ),
        *(
            "from os import urandom",
            "import os\nos.urandom(4)",
            "def f():\n    import secrets",
            "from datetime import datetime\ndatetime.now()",
        ),
        *(
            "X25519PrivateKey.generate()",
            "open('state')",
            "from converge.env import SYSTEM",
            "from anyio.abc import TaskGroup",
        ),
    ]
    assert [sample for sample in samples if not impurities(sample)] == []


def test_time_as_an_argument_is_pure() -> None:
    assert not impurities(
        "from datetime import UTC, datetime\ndef is_due(due: datetime, now: datetime) -> bool: return due <= now"
    )

"""Users' code under basedpyright, as under mypy, and how much of the public names is typed whatever the checker.

With FULL_TESTS=1 only, since the checker brings a runtime of its own; mypy reads the same files in each run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKER = "basedpyright==1.40.2"
# Per cent of the names that users meet whose types no checker has to infer; it may only grow.
COMPLETE = {
    "converge-core": ("converge", 85.0),
    "converge-store-redis": ("converge_store_redis", 86.0),
    "converge-store-sql": ("converge_store_sql", 94.0),
    "converge-transport-tcp": ("converge_transport_tcp", 80.0),
    "converge-transport-ws": ("converge_transport_ws", 93.0),
}

pytestmark = [
    pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for the checker's size"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="session")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checker, in an environment of its own."""
    folder = tmp_path_factory.mktemp("checker")
    venv.create(folder, with_pip=True)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", CHECKER]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    return folder / "bin" / "basedpyright"


def test_users_code_is_right_and_its_mistakes_are_found(checker: Path) -> None:
    command = [str(checker), "-p", "pyrightconfig.json", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT / "tests/typing", capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3_000:]


@pytest.mark.parametrize("package", COMPLETE)
def test_the_types_of_public_names_are_as_complete_as_they_were(
    package: str, checker: Path, python_with: Callable[[str], Path], tmp_path: Path
) -> None:
    module, least = COMPLETE[package]
    python = python_with(package)
    environment = {**os.environ, "VIRTUAL_ENV": str(python.parents[1]), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    command = [str(checker), "--verifytypes", module, "--ignoreexternal"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    found = re.search(r"Type completeness score: ([\d.]+)%", done.stdout)
    assert found is not None, done.stdout[-2_000:] + done.stderr
    assert float(found[1]) >= least, "\n".join(line for line in done.stdout.splitlines() if " - error: " in line)

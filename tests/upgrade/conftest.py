"""The release before, as it stands in the repository's history, and stores that both releases use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

HERE = Path(__file__).parent
BEFORE = "7bc5da6"
"""The last commit whose stores have no format but the first, and whose processes know no other."""

Run = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """PostgreSQL is reached on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which Python imports the release before, as wheels of what is in the history."""
    folder = tmp_path_factory.mktemp("before")
    packages = ["converge-core", "converge-store-sql"]
    archive = subprocess.run(["git", "archive", BEFORE, *packages], cwd=HERE.parents[1], capture_output=True)
    if archive.returncode:
        pytest.skip(f"needs the commit {BEFORE}, which this clone's history does not have: git fetch --unshallow")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    for package in packages:
        _call("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), folder=folder / package)
    for wheel in folder.glob("*.whl"):
        ZipFile(wheel).extractall(folder / "site")  # the whole of an installation, but for the command
    return os.environ | {"PYTHONPATH": str(folder / "site")}


def _call(*arguments: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def old(before: dict[str, str], place: tuple[str, str]) -> Run:
    """`old("plain=3")`: what the release before prints for the steps on the test's store."""

    def run(*steps: str, fails: bool = False) -> list[Any]:
        ran = subprocess.run(
            [sys.executable, str(HERE / "release_steps.py"), *place, *steps],
            env=before,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == int(fails), f"{ran.stdout}\n{ran.stderr}"
        return [json.loads(line) for line in ran.stdout.splitlines()]

    return run


@pytest.fixture
def old_running(before: dict[str, str], place: tuple[str, str]) -> Callable[..., Any]:
    """`with old_running("wait", "plain=3") as process`: a process of the release before that goes on beside."""

    @contextmanager
    def running(*steps: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [sys.executable, str(HERE / "release_steps.py"), *place, *steps],
            env=before,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    return running


@pytest.fixture(params=["file", "sql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, namespace: str, postgres_url: str) -> tuple[str, str]:
    """The URL and the network of a store of the test's own."""
    if request.param == "file":
        return f"file:{tmp_path / 'state.db'}", "converge"
    return postgres_url, namespace

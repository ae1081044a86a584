"""The fixtures for any author: the leak checks find each kind of leak, waiting ends when it should."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from converge.testing.fixtures import wait_until, wait_until_sync

LEAKS = {
    "thread": """
        import threading
        def test_it():
            threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()
        """,
    "process": """
        import subprocess, sys
        kept = []
        def test_it():
            kept.append(subprocess.Popen([sys.executable, "-c", "input('forgotten')"], stdin=subprocess.PIPE))
        """,
    "task": """
        import asyncio, pytest
        @pytest.fixture
        def anyio_backend():
            return "asyncio"
        kept = []
        async def test_it():
            kept.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))
        """,
}
CLEAN = """
    import asyncio, pytest, subprocess, sys, threading
    import anyio.to_thread
    @pytest.fixture
    def anyio_backend():
        return "asyncio"
    @pytest.fixture
    async def group():
        async with anyio.create_task_group() as group:
            yield group
            group.cancel_scope.cancel()
    async def test_tasks(group):
        group.start_soon(anyio.sleep_forever)
        await anyio.to_thread.run_sync(lambda: None)
        await asyncio.create_task(asyncio.sleep(0))
    def test_threads_and_processes():
        thread = threading.Thread(target=lambda: None)
        thread.start()
        subprocess.run([sys.executable, "-c", ""], check=True)
    """


def _run_pytest(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "test_sample.py"
    file.write_text(textwrap.dedent(source))
    options = [
        "-p",
        "converge.testing.fixtures",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
        "-o",
        "anyio_mode=auto",
    ]
    command = [sys.executable, "-m", "pytest", "-q", *options, "--rootdir", str(folder), "-c", "/dev/null", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)


@pytest.mark.parametrize("kind", LEAKS)
def test_what_a_test_leaves_behind_fails_it_by_name(kind: str, tmp_path: Path) -> None:
    result = _run_pytest(LEAKS[kind], tmp_path)
    assert result.returncode == 1, result.stdout
    assert "left behind by the test" in result.stdout
    assert "forgotten" in result.stdout


def test_what_fixtures_and_loops_clean_up_is_no_leak(tmp_path: Path) -> None:
    result = _run_pytest(CLEAN, tmp_path)
    assert result.returncode == 0, result.stdout


async def test_waiting_ends_as_soon_as_the_condition_holds() -> None:
    answers = iter([False, False, True])
    await wait_until(lambda: next(answers))
    assert next(answers, None) is None


async def test_a_condition_may_be_a_coroutine() -> None:
    async def holds() -> bool:
        return True

    await wait_until(holds)


async def test_a_condition_that_never_holds_is_named() -> None:
    with pytest.raises(AssertionError, match="the flood did not come true"):
        await wait_until(lambda: False, timeout=0.02, what="the flood")


def test_waiting_without_a_loop_has_an_end_too() -> None:
    wait_until_sync(lambda: True)
    with pytest.raises(AssertionError, match="the flood did not come true"):
        wait_until_sync(lambda: False, timeout=0.02, what="the flood")


def test_namespaces_differ_from_test_to_test(namespace: str) -> None:
    assert namespace.isalnum()
    assert len(namespace) <= 16

"""Threads of the node's own, where the system has none left."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from converge import Node, open_store
from converge.cli.failures import FAILED, failed
from converge.errors import StoreUnavailable
from converge.net.sockets import connect
from converge.threads import NoThread, in_own_thread


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system starts no thread."""

    async def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("converge.threads.to_thread.run_sync", refuse)


async def test_an_error_of_what_runs_there_is_its_own() -> None:
    def fail() -> NoReturn:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        await in_own_thread(fail)


async def test_who_gets_no_thread_is_told_so(
    no_threads: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StoreUnavailable, match="new thread"):
        async with open_store(f"file:{tmp_path / 'state.db'}"):
            raise AssertionError("it cannot be looked at")
    with pytest.raises(OSError, match="new thread"):
        await connect("localhost", 1)
    with pytest.raises(NoThread) as told:
        async with Node(identity_dir=str(tmp_path / "keys")):
            raise AssertionError("its keys cannot be read")
    assert failed(told.value) == FAILED
    assert "no more threads" in capsys.readouterr().err.splitlines()[-1]

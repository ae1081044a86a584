"""A full disk beneath PostgreSQL: nothing is acknowledged that is not stored, what is there can be read and deleted,
and the room that this makes serves the next writes.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from converge.contracts.store import Batch, Committed
from converge.errors import StoreFull
from converge.model.keys import TASK
from converge.testing.servers import UNPRIVILEGED_USERS, postgres_server
from converge_store_sql import SqlOptions, SqlStore

SIZE_KB, VALUE = 16_384, 500_000


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system of its own in memory, small enough to be filled, which the server's user may write to."""
    place = Path(tempfile.mkdtemp(prefix="converge-small-", dir="/tmp"))
    place.chmod(0o755)
    disk = place / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_KB}k", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0 and os.geteuid() != 0:
        pytest.skip(f"only root may mount a file system that can be filled: {mounted.stderr.strip()}")
    assert mounted.returncode == 0, mounted.stderr
    try:
        names = {account.pw_name for account in pwd.getpwall()}
        shutil.chown(disk, next(user for user in UNPRIVILEGED_USERS if user in names))
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        shutil.rmtree(place)


@pytest.fixture
async def server(disk: Path) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """A server whose tables lie on the small disk, and its log elsewhere: without room for that it would end."""
    with postgres_server(fsync=False) as url:
        connection = await asyncpg.connect(url)
        await connection.execute(f"create tablespace small location '{disk}'")
        await connection.execute("alter role postgres set default_tablespace = small")
        yield url, connection
        await connection.close()


async def test_what_is_on_a_full_disk_can_be_read_and_deleted_and_makes_room(
    server: tuple[str, asyncpg.Connection], namespace: str
) -> None:
    url, connection = server
    async with SqlStore.open(url, SqlOptions(network=namespace)) as store:
        stored: list[bytes] = []
        with pytest.raises(StoreFull):
            while len(stored) < 1_000:
                task_id = secrets.token_bytes(16)
                value = secrets.token_bytes(VALUE)  # what could not be compressed
                (outcome,) = await store.commit([Batch(puts=[(TASK(task_id), value)])])
                assert isinstance(outcome, Committed)
                stored.append(task_id)
                if len(stored) == 1:  # its first one makes the map of the table's pages, as it has in any store in use
                    await connection.execute(f"vacuum {namespace}_task")
        assert len(stored) > 10
        entries = await store.get([TASK(task_id) for task_id in stored])
        assert [entry is not None and len(entry.value) for entry in entries] == [VALUE] * len(stored)
        for task_id in stored:
            (outcome,) = await store.commit([Batch(deletes=[TASK(task_id)])])
            assert isinstance(outcome, Committed)
        await connection.execute(f"vacuum {namespace}_task")  # as autovacuum does in its own time
        (outcome,) = await store.commit([Batch(puts=[(TASK(stored[0]), secrets.token_bytes(VALUE))])])
        assert isinstance(outcome, Committed)

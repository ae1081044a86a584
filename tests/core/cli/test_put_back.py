"""Servers that come back as they were, torn records, newer formats: what operators' commands say and do."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
import redis

from converge import open_store
from converge.codec import FORMAT
from converge.contracts.store import Batch, Committed
from converge.model.keys import FORMAT as STORE_FORMAT
from converge.model.keys import TORN, Key

Converge = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["redis", "postgres"])
def store(
    request: pytest.FixtureRequest, redis_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> tuple[str, ...]:
    """Flags that name a store of its own on a real server; its URL has a password, so it comes from the environment."""
    monkeypatch.setenv("CONVERGE_STORE", {"redis": redis_url, "postgres": postgres_url}[request.param])
    return ("--network", f"n{uuid.uuid4().hex[:12]}")


def records(answer: Any) -> list[dict[str, Any]]:
    """The JSON lines of an answer that went well."""
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.out.splitlines()]


class Snapshot:
    """What a server's own backup of one network brings back: everything as it was, revisions and epoch included."""

    def __init__(self, kind: str, url: str, network: str) -> None:
        self._kind, self._url, self._network = kind, url, network
        self._keys: dict[bytes, bytes] = {}

    def take(self) -> None:
        """Back the network up."""
        if self._kind == "redis":
            with redis.Redis.from_url(self._url) as server:
                self._keys = {key: server.dump(key) for key in server.scan_iter(f"{{{self._network}}}:*")}
        else:
            anyio.run(self._on_postgres, "create table {0}_old as table {0}", "create table {0}_old as table {0}")

    def restore(self) -> None:
        """Bring it back, over what there is now."""
        if self._kind == "redis":
            with redis.Redis.from_url(self._url) as server:
                server.delete(*server.scan_iter(f"{{{self._network}}}:*"))
                for key, value in self._keys.items():
                    server.restore(key, 0, value, replace=True)
        else:
            anyio.run(
                self._on_postgres,
                "delete from {0}; insert into {0} overriding system value select * from {0}_old",
                "select setval('{0}', last_value) from {0}_old",
            )

    async def _on_postgres(self, of_table: str, of_sequence: str) -> None:
        connection = await asyncpg.connect(self._url)
        named = "select relname, relkind from pg_class where relname like $1 and relkind in ('r', 'S')"
        try:
            async with connection.transaction():
                for name, kind in await connection.fetch(named, f"{self._network}\\_%"):
                    if not name.endswith("_old"):
                        await connection.execute((of_table if kind == b"r" else of_sequence).format(name))
        finally:
            await connection.close()


async def draw_revisions(url: str, network: str) -> None:
    """Let the next revision of a network be a much greater one."""
    async with open_store(url, network=network) as opened:
        (outcome,) = await opened.commit([Batch()])
        assert isinstance(outcome, Committed)
        await opened.advance(outcome.revision + 10_000)


def test_a_process_whose_server_was_put_back_goes_on_once_it_was_accepted(
    converge: Converge, folder: Path, store: tuple[str, ...], start: Start, request: pytest.FixtureRequest
) -> None:
    kind, url = request.node.callspec.params["store"], os.environ["CONVERGE_STORE"]
    snapshot = Snapshot(kind, url, store[1])
    (folder / "kept.toml").write_text('identity_dir = "keys"')
    assert converge("pools", "create", "docs", *store).code == 0
    process = start("run", "counting:WordCounter", "--pool", "docs", "-c", "kept.toml", *store)
    assert process.stderr is not None
    assert any("running" in line for line in process.stderr), "it ended before it ran"
    ask = ("submit", "--pool", "docs", "--capability", "count-words", "--input", "text=a b", *store)
    assert converge(*ask, "--wait", "--timeout", "20").code == 0
    snapshot.take()
    # More than those who write after it was put back draw before the process looks again, however slow it is.
    anyio.run(draw_revisions, url, store[1])
    assert converge(*ask, "--wait", "--timeout", "20").code == 0
    snapshot.restore()  # as a replica that lacked the last writes and took over
    assert converge(*ask, "--wait", "--timeout", "2").code == 5, "nobody may claim before it was accepted"
    assert any("converge store accept" in line for line in process.stderr), "it ended before it told"
    levels = {one["code"]: one["level"] for one in lines(converge("doctor", "--json", "-c", "kept.toml", *store))}
    assert levels["history"] == "ok", "its epoch is the one that is remembered; only a revision tells the difference"
    (accepted,) = records(converge("store", "accept", "--yes", "--json", "-c", "kept.toml", *store))
    assert accepted["epoch"] != accepted["before"] and accepted["identity_dir"] == "keys"
    assert converge(*ask, "--wait", "--timeout", "20").code == 0
    assert process.poll() is None


def lines(answer: Any) -> list[dict[str, Any]]:
    """The JSON lines of an answer, however it went."""
    return [json.loads(line) for line in answer.out.splitlines()]


def test_what_nobody_can_read_is_listed_and_a_newer_format_refused_on_every_store(
    converge: Converge, folder: Path, store: tuple[str, ...]
) -> None:
    assert converge("pools", "create", "docs", *store).code == 0
    url, network = os.environ["CONVERGE_STORE"], store[1]

    async def put(key: Key, value: bytes) -> None:
        async with open_store(url, plugins=["redis", "sql"], network=network) as opened:
            await opened.commit([Batch((), [(key, value)])])

    anyio.run(put, TORN(b"\xbb" * 16), b'{"pool": "docs", "why": "it is cut off", "at": 5, "place": "ready"}')
    torn = [one for one in records(converge("doctor", "--json", *store)) if one["code"] == "set-aside"]
    assert len(torn) == 1 and "it is cut off" in torn[0]["finding"]
    newer = FORMAT + 1
    anyio.run(put, STORE_FORMAT(), b'{"number": %d, "oldest": "7.0.0"}' % newer)
    refused = converge("tasks", "list", *store)
    assert refused.code == 4 and f"format {newer}" in refused.err and f"knows {FORMAT}" in refused.err

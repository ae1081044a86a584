"""What user code has `sqlite3` make of bytes, texts and numbers changes no key or value of a file store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from converge import Agent, Node, Task, open_store
from converge.builtin.file import statements
from converge.builtin.file.statements import Connection, check_bound, pass_adapters
from converge.builtin.file.store import FileStore
from converge.contracts.store import Batch, Committed, Range
from converge.errors import StoreUnavailable
from converge.model.keys import POOL, READY


@pytest.fixture(params=[bytes, str, int])
def kind(request: pytest.FixtureRequest) -> Iterator[type]:
    """A type that keys and values are of; its adapter is removed afterwards."""
    yield request.param
    sqlite3.adapters.pop((request.param, sqlite3.PrepareProtocol), None)


def register(kind: type) -> None:
    """Have each value of the type become another one, in the whole process."""
    sqlite3.register_adapter(kind, lambda _: "something else")


async def test_no_task_is_lost_when_a_handler_registers_an_adapter(kind: type, tmp_path: Path) -> None:
    class Registering(Agent):
        async def on_task(self, task: Task) -> str:
            register(kind)
            return "done"

    with anyio.fail_after(60):
        async with Node(store=f"file:{tmp_path / 'state.db'}") as node:
            await node.spawn(Registering, pool="p")
            ids = await node.tasks.submit_many([Task(pool_id="p") for _ in range(4)])
            assert {(await node.tasks.result(id_)).result for id_ in ids} == {"done"}
            assert sorted(task.id for task in await node.tasks.list(pool_id="p")) == sorted(ids)


@pytest.mark.parametrize("call", ["commit", "get", "scan", "count", "data_version"])
async def test_an_adapter_that_comes_amid_a_call_has_it_done_again(
    kind: type, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, calls = READY(bytes(16), 7, bytes(16)), 0

    def passed(connection: sqlite3.Connection) -> None:
        nonlocal calls
        pass_adapters(connection)
        if (calls := calls + 1) == 1:
            register(kind)

    async with open_store(f"file:{tmp_path / 'state.db'}") as store:
        await store.commit([Batch(puts=[(POOL("p"), b"before"), (key, b"")])])
        monkeypatch.setattr(statements, "pass_adapters", passed)
        if call == "commit":
            (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"after")])])
            assert isinstance(outcome, Committed)
        elif call == "get":
            (found,) = await store.get([POOL("p")])
            assert found is not None and found.value == b"before"
        elif call == "scan":
            ((entry,),) = await store.scan([Range(READY(bytes(16)))])
            assert entry.key == key
        elif call == "count":
            assert await store.count([READY(bytes(16))]) == [1]
        else:
            assert isinstance(store, FileStore) and store._reader.data_version() > 0
        assert calls == 2
        (found,) = await store.get([POOL("p")])
        assert found is not None and found.value == (b"after" if call == "commit" else b"before")


def test_a_connection_that_has_bound_something_else_says_so(kind: type) -> None:
    connection = sqlite3.connect(":memory:", factory=Connection)
    pass_adapters(connection)
    check_bound(connection)
    register(kind)
    with pytest.raises(StoreUnavailable, match="try again"):
        check_bound(connection)
    pass_adapters(connection)
    check_bound(connection)
    values = [b"bytes", "text", 7]
    assert list(connection.execute("select ?, ?, ?", values)) == [tuple(values)]
    connection.execute("create table t (a, b, c)")
    connection.executemany("insert into t values (?, ?, ?)", [values])
    assert list(connection.execute("select typeof(a), typeof(b), typeof(c) from t")) == [("blob", "text", "integer")]
    connection.close()

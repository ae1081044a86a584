"""What the tables and statements look like to those who operate them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import asyncpg

from converge.contracts.store import ABSENT, Batch, Committed, Conflict, Range, Take, Taken
from converge.model.keys import EPOCH, FAMILIES, HELD, LATER, LEASE, READY, STATE, TASK, Key
from converge_store_sql import SqlOptions, SqlStore
from converge_store_sql.postgresql.engine import ARRAYS
from converge_store_sql.postgresql.store import PostgresqlStore

Ids = Callable[[], bytes]


async def test_the_view_shows_each_task_with_its_place(
    store: SqlStore, options: SqlOptions, postgres_url: str, new_id: Ids
) -> None:
    lane, lease, ready, later, held = (new_id() for _ in range(5))
    spec = b'{"pool":"docs"}'
    await store.commit(
        [
            Batch(puts=[(TASK(held), spec), (READY(lane, 1, held), b""), (STATE(held), b'{"attempts":1}')]),
            Batch(puts=[(TASK(ready), spec), (READY(lane, 2, ready), b"")]),
            Batch(puts=[(TASK(later), spec), (LATER(5, later), b"")]),
        ]
    )
    await store.turn([], Take([Range(READY(lane))], 1, HELD(lease), (new_id(),)))
    connection = await asyncpg.connect(postgres_url)
    try:
        found = await connection.fetch(f"select id, place, task, record from {options.network}_tasks")
    finally:
        await connection.close()
    assert {row["id"].bytes: row["place"] for row in found} == {ready: "ready", later: "later", held: "held"}
    assert [row["record"] for row in found if row["id"] == uuid.UUID(bytes=held)] == ['{"attempts":1}']


async def test_every_lookup_of_a_turn_is_by_index(store: SqlStore, postgres_url: str, new_id: Ids) -> None:
    lane, lease = new_id(), new_id()
    (outcome,) = await store.commit(
        [Batch(puts=[(LEASE(lease), b""), *((READY(lane, n, new_id()), b"") for n in range(50))])]
    )
    assert isinstance(outcome, Committed)
    take = Take(
        [Range(READY(lane)), Range(READY(new_id()))],
        10,
        HELD(lease),
        (new_id(),),
        [(LEASE(lease), outcome.revision)],
        [TASK, STATE],
    )
    texts: list[tuple[str, tuple[object, ...]]] = []
    assert isinstance(store, PostgresqlStore)
    run = store._connections.run

    async def note(text: str, arguments: tuple[object, ...], *, writes: bool) -> object:
        texts.append((text, tuple(arguments)))
        return await run(text, arguments, writes=writes)

    store._connections.run = note  # type: ignore[assignment, method-assign]  # listens in
    await store.turn([Batch([(EPOCH(), ABSENT)], [(EPOCH(), b"1"), (STATE(new_id()), b"1")])], take)
    ((text, arguments),) = texts
    async with store._connections.driver() as driver:
        plan = [row[0] for row in await driver.fetch(f"explain {text}", *arguments)]
    tables = [
        line
        for line in plan
        if " on " in line and "Scan" in line and "CTE Scan" not in line and "Function Scan" not in line
    ]
    assert len(tables) >= 7
    assert [line for line in tables if "Seq Scan" in line or "Bitmap" in line] == []


async def test_a_connection_asks_nothing_about_the_types_of_our_statements(store: SqlStore, new_id: Ids) -> None:
    lane, lease, task = new_id(), new_id(), new_id()
    (outcome,) = await store.commit([Batch(puts=[(LEASE(lease), b""), (READY(lane, 1, task), b""), (TASK(task), b"")])])
    assert isinstance(outcome, Committed)
    take = Take([Range(READY(lane))], 10, HELD(lease), (new_id(),), [(LEASE(lease), outcome.revision)], [TASK, STATE])
    _, taken = await store.turn([Batch([(EPOCH(), ABSENT)], [(STATE(task), b"1")])], take)
    assert isinstance(taken, Taken)
    await store.get([TASK(task), LEASE(lease)])
    await store.scan([Range(READY(lane)), Range(HELD(lease))])
    await store.count([READY(lane)])
    assert isinstance(store, PostgresqlStore)
    drivers = [driver for driver, _ in store._connections._free]
    assert drivers
    for driver in drivers:
        kept = [row[0] for row in await driver.fetch("select statement from pg_prepared_statements")]
        assert any("::bytea[]" in text for text in kept)
        assert [text for text in kept if "pg_type" in text] == []


async def test_arrays_are_what_the_server_says_they_are(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        rows = await connection.fetch(
            "select a.oid, a.typname, a.typelem, e.typdelim from pg_type a join pg_type e on e.oid = a.typelem "
            "where a.oid = any($1::oid[]) and a.typlen = -1",
            list(ARRAYS),
        )
    finally:
        await connection.close()
    assert {row["oid"]: (row["typname"], row["typelem"]) for row in rows} == ARRAYS
    assert {row["typdelim"] for row in rows} == {b","}


async def test_a_batch_names_every_check_that_failed(store: SqlStore, new_id: Ids) -> None:
    there, gone, fresh = LEASE(new_id()), LEASE(new_id()), TASK(new_id())
    other = STATE(new_id())
    await store.commit([Batch(puts=[(there, b"1"), (fresh, b"1"), (other, b"1")])])
    checks: list[tuple[Key, int]] = [(gone, 5), (there, 1_000_000), (fresh, ABSENT), (other, 999_999)]
    (outcome,) = await store.commit([Batch(checks, [(fresh, b"2")], [other])])
    assert isinstance(outcome, Conflict)
    assert set(outcome.keys) == {gone, there, fresh, other}


async def test_a_key_that_is_as_a_rule_new_may_be_there_already(store: SqlStore, new_id: Ids) -> None:
    lane, id_, lease, nonce = new_id(), new_id(), new_id(), new_id()
    ready, held = READY(lane, 1, id_), HELD(lease, 1, id_, nonce)
    await store.commit([Batch(puts=[(ready, b"first"), (held, b"first")])])
    await store.commit([Batch(puts=[(ready, b"second")])])
    (entry,) = await store.get([ready])
    assert entry is not None and entry.value == b"second"
    taken = (await store.turn([], Take([Range(READY(lane))], 1, HELD(lease), (nonce,)))).taken
    assert isinstance(taken, Taken)
    (entry,) = await store.get([held])
    assert entry is not None and entry.revision == taken.revision and entry.value == str(taken.time).encode()


async def test_states_of_which_some_are_new_and_some_are_not_are_put_by_one_statement(
    store: SqlStore, new_id: Ids
) -> None:
    assert isinstance(store, PostgresqlStore)
    keys = [STATE(new_id()) for _ in range(6)]
    first = await store.commit([Batch(puts=[(key, b"first")]) for key in keys[::2]])
    calls, run = 0, store._connections.run

    async def note(text: str, arguments: tuple[object, ...], *, writes: bool) -> object:
        nonlocal calls
        calls += 1
        return await run(text, arguments, writes=writes)

    store._connections.run = note  # type: ignore[assignment, method-assign]  # listens in
    wrong = Batch([(LEASE(new_id()), 1)], [(STATE(new_id()), b"never")])
    *outcomes, refused = await store.commit([*(Batch(puts=[(key, b"second")]) for key in keys), wrong])
    assert (calls, isinstance(refused, Conflict)) == (1, True)
    (revision,) = {outcome.revision for outcome in outcomes if isinstance(outcome, Committed)}
    assert all(isinstance(one, Committed) and one.revision < revision for one in first)
    found = await store.get([*keys, wrong.puts[0][0]])
    assert [entry and (entry.value, entry.revision) for entry in found] == [(b"second", revision)] * 6 + [None]


async def test_every_family_keeps_its_keys_as_they_were(store: SqlStore, new_id: Ids) -> None:
    samples = {"id": new_id(), "hash": new_id(), "int": -(2**63), "name": "Ünïcode \U0001f600 z"}
    keys = [family(*(samples[part.value] for part in family.parts.values())) for family in FAMILIES.values()]
    await store.commit([Batch(puts=[(key, bytes(range(256))) for key in keys])])
    entries = await store.get(keys)
    assert [entry and (entry.key, entry.value) for entry in entries] == [(key, bytes(range(256))) for key in keys]
    for key in keys:
        (found,) = await store.scan([Range(key[:1])])
        assert [entry.key for entry in found] == [key]
        assert await store.count([key[:1], key]) == [1, 1]


async def test_more_calls_than_connections_wait_their_turn(postgres_url: str, options: SqlOptions) -> None:
    async with SqlStore.open(postgres_url, SqlOptions(network=options.network, connections=1)) as narrow:
        answers = await asyncio.gather(
            *(narrow.commit([Batch(puts=[(LEASE(n.to_bytes(16)), b"")])]) for n in range(20))
        )
        revisions = [answer[0].revision for answer in answers if isinstance(answer[0], Committed)]
        assert len(set(revisions)) == 20

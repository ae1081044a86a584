"""What two connections do to each other at the same moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from converge.contracts.store import ABSENT, Batch, Committed, Conflict, Range, Store, Take, Taken, Turned
from converge.model.keys import DEAD, EXPIRY, HELD, LEASE, POOL, READY, TASK, Key
from converge.testing.servers import postgres_server
from converge_store_sql import SqlOptions, SqlStore

Ids = Callable[[], bytes]


async def together(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Start all calls at once; answer what they answered."""
    answers: list[Any] = [None] * len(calls)

    async def run(number: int) -> None:
        answers[number] = await calls[number]()

    async with anyio.create_task_group() as group:
        for number in range(len(calls)):
            group.start_soon(run, number)
    return answers


async def put(store: Store, *keys: Key) -> int:
    (outcome,) = await store.commit([Batch(puts=[(key, b"1") for key in keys])])
    assert isinstance(outcome, Committed)
    return outcome.revision


async def test_two_calls_that_each_check_what_the_other_writes_end_with_one_commit(namespace: str) -> None:
    # Each locks the row it checks, then waits for the row it writes: a deadlock, which the server ends and the store
    # runs again.
    with postgres_server(fsync=False, options=["deadlock_timeout=10ms"]) as url:
        async with SqlStore.open(url, SqlOptions(network=namespace)) as one, one.reopen() as two:
            x, y = POOL("x"), LEASE(bytes(16))
            for _ in range(40):
                revision = await put(one, x, y)
                first = [Batch([(x, revision)], [(y, b"2")])]
                second = [Batch([(y, revision)], [(x, b"3")])]
                answers = await together(lambda: one.commit(first), lambda: two.commit(second))  # noqa: B023  # awaited within the round
                assert {type(outcome) for (outcome,) in answers} == {Committed, Conflict}


async def test_calls_with_the_same_keys_in_opposite_orders_all_commit(store: SqlStore) -> None:
    keys = [POOL(f"p{n}") for n in range(50)]
    async with store.reopen() as other:
        for _ in range(20):
            forth = [Batch(puts=[(key, b"forth") for key in keys])]
            back = [Batch(puts=[(key, b"back") for key in reversed(keys)])]
            answers = await together(lambda: store.commit(forth), lambda: other.commit(back))  # noqa: B023  # awaited within the round
            assert all(isinstance(outcome, Committed) for (outcome,) in answers)
            values = {entry.value for entry in await store.get(keys) if entry is not None}
            assert len(values) == 1


async def test_one_of_many_that_find_a_key_absent_puts_it(store: SqlStore, new_id: Ids) -> None:
    async with store.reopen() as other:
        for _ in range(25):
            ids = [new_id() for _ in range(20)]
            batches = [Batch([(TASK(id_), ABSENT)], [(TASK(id_), b"1"), (EXPIRY(id_), b"")]) for id_ in ids]
            one, two = await together(lambda: store.commit(batches), lambda: other.commit(batches[::-1]))  # noqa: B023  # awaited within the round
            for first, second in zip(one, reversed(two), strict=True):
                assert {type(first), type(second)} == {Committed, Conflict}


@pytest.mark.parametrize("is_inherited", [False, True], ids=["overridden", "inherited"])
async def test_no_take_outlives_the_lease_that_was_ended_under_it(
    store: SqlStore, new_id: Ids, is_inherited: bool
) -> None:
    rounds, outlived, moved = 150, 0, 0
    async with store.reopen() as other:
        for number in range(rounds):
            lease, lane, nonce = new_id(), new_id(), new_id()
            revision = await put(store, LEASE(lease), *(READY(lane, n, new_id()) for n in range(20)))
            take = Take([Range(READY(lane))], 20, HELD(lease), (nonce,), [(LEASE(lease), revision)])

            async def claim(take: Take = take) -> Turned:
                return await (Store.turn(store, [], take) if is_inherited else store.turn([], take))

            async def end(lease: bytes = lease, revision: int = revision) -> int:
                await other.commit([Batch([(LEASE(lease), revision)], [(DEAD(lease), b"")], [LEASE(lease)])])
                (held,) = await other.scan([Range(HELD(lease))])
                return len(held)

            # Each side goes first in half of the rounds; how far the other has come by then is the servers' matter.
            turned, seen = await together(claim, end) if number % 2 else reversed(await together(end, claim))
            assert isinstance(turned, Turned)
            taken = len(turned.taken.rests) if isinstance(turned.taken, Taken) else 0
            outlived += taken != seen
            moved += bool(taken)
    assert outlived == 0
    assert 0 < moved < rounds, "one side always came first, so nothing was raced"


async def test_takes_at_the_same_moment_share_the_keys_out(store: SqlStore, new_id: Ids) -> None:
    lane, lease = new_id(), new_id()
    ids = [new_id() for _ in range(400)]
    await put(store, LEASE(lease), *(READY(lane, n, id_) for n, id_ in enumerate(ids)))
    taken: list[bytes] = []

    async def drain(handle: Store) -> None:
        for _ in range(200):
            turned = await handle.turn([], Take([Range(READY(lane))], 10, HELD(lease), (new_id(),)))
            assert isinstance(turned.taken, Taken)
            taken.extend(rest[-1] for rest in turned.taken.rests)
            if not turned.taken.rests and turned.taken.heads == [None]:
                return

    async with store.reopen() as other:
        await together(lambda: drain(store), lambda: drain(store), lambda: drain(other), lambda: drain(other))
    assert sorted(taken) == sorted(ids)
    assert await store.count([READY(lane), HELD(lease)]) == [0, 400]


async def test_a_task_claimed_again_has_a_greater_token(store: SqlStore, new_id: Ids) -> None:
    lane, id_ = new_id(), new_id()
    await put(store, READY(lane, 1, id_))
    tokens: list[int] = []

    async def claim_and_put_back(handle: Store) -> None:
        for _ in range(500):
            if len(tokens) >= 60:
                return
            lease, nonce = new_id(), new_id()
            turned = await handle.turn([], Take([Range(READY(lane))], 1, HELD(lease), (nonce,)))
            assert isinstance(turned.taken, Taken)
            if turned.taken.rests:
                tokens.append(turned.taken.revision)
                held = HELD(lease, 1, id_, nonce)
                (outcome,) = await handle.commit(
                    [Batch([(held, turned.taken.revision)], [(READY(lane, 1, id_), b"")], [held])]
                )
                assert isinstance(outcome, Committed)

    async with store.reopen() as other:
        await together(
            lambda: claim_and_put_back(store), lambda: claim_and_put_back(store), lambda: claim_and_put_back(other)
        )
    assert len(tokens) >= 60
    assert tokens == sorted(set(tokens))


async def test_a_key_that_is_put_by_many_never_goes_back_in_revision(store: SqlStore) -> None:
    key, seen = POOL("busy"), []

    async def write(handle: Store) -> None:
        for _ in range(50):
            await handle.commit([Batch(puts=[(key, b"x")])])

    async def read(handle: Store) -> None:
        for _ in range(100):
            (entry,) = await handle.get([key])
            seen.append(0 if entry is None else entry.revision)

    async with store.reopen() as other:
        await together(lambda: write(store), lambda: write(other), lambda: write(other), lambda: read(store))
    assert seen == sorted(seen)


async def test_a_writer_is_not_starved_by_those_who_check_what_it_writes(store: SqlStore, new_id: Ids) -> None:
    lane, lease, pool = new_id(), new_id(), POOL("busy")
    revision = await put(store, pool, *(READY(lane, n, new_id()) for n in range(900)))
    is_over = False

    async def take(handle: Store) -> None:
        for _ in range(10_000):
            if is_over:
                return
            # After the first write this conflicts, and checks all the same.
            await handle.turn([], Take([Range(READY(lane))], 1, HELD(lease), (new_id(),), [(pool, revision)]))

    async def write(handle: Store) -> float:
        nonlocal is_over
        worst = 0.0
        for _ in range(20):
            started = anyio.current_time()
            await handle.commit([Batch(puts=[(pool, b"2")])])
            worst = max(worst, anyio.current_time() - started)
        is_over = True
        return worst

    async with store.reopen() as other, store.reopen() as third:
        *_, worst = await together(
            *(lambda handle=handle: take(handle) for handle in (store, store, store, other, other, other)),
            lambda: write(third),
        )
    assert worst < 2.0

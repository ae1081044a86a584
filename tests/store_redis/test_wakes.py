"""Wake-ups: one sleeper of a channel is told, dead ones swallow nothing, a broken subscription comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio
import pytest

from converge.contracts.store import Batch, Committed, Entry
from converge.model.keys import POOL
from converge.testing.cuts import CutProxy
from converge.testing.fixtures import wait_until
from converge.testing.store import Cut
from converge_store_redis import RedisOptions, RedisStore, sleepers
from converge_store_redis.call import Names
from converge_store_redis.connect import Connector
from converge_store_redis.scripts import load

Send = Callable[..., Awaitable[Any]]

PUT = Batch(puts=[(POOL("p"), b"1")])


class Told:
    """Counts how often a watch has yielded."""

    def __init__(self) -> None:
        self.count = 0


@asynccontextmanager
async def watching(store: RedisStore, *channels: str) -> AsyncIterator[Told]:
    """Watch in a task; the watch is in force when the block begins."""
    told = Told()

    async def watch() -> None:
        items = cast("AsyncGenerator[None]", store.watch(channels))
        try:
            async for _ in items:
                told.count += 1
        finally:
            with anyio.CancelScope(shield=True):
                await items.aclose()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await wait_until(lambda: told.count > 0, what="the first item of a watch")
        yield told
        tasks.cancel_scope.cancel()


async def test_who_is_struck_out_by_a_watch_that_ended_before_it_enters_again(
    store: RedisStore, redis_url: str, send: Send
) -> None:
    """The server no longer knows the script by which the first one leaves, so that this takes a trip more than the
    second one's entering.
    """
    ending = cast("AsyncGenerator[None]", store.watch(["c"]))
    await anext(ending)
    async with anyio.create_task_group() as tasks:  # two connections are there
        tasks.start_soon(store.time)
        tasks.start_soon(store.time)
    await send(redis_url, "SCRIPT", "FLUSH")
    await send(redis_url, "SCRIPT", "LOAD", load("sleep").text)
    has_ended = anyio.Event()

    async def end() -> None:
        await ending.aclose()
        has_ended.set()

    async with store.reopen() as other, anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        async with watching(store, "c") as told:
            await has_ended.wait()
            count = told.count
            await other.commit([PUT], wake=["c"])
            await wait_until(lambda: told.count > count, what="a wake")


async def test_a_wake_tells_one_of_many_handles(store: RedisStore) -> None:
    async with AsyncExitStack() as stack:
        all_told = []
        for _ in range(5):
            other = cast("RedisStore", await stack.enter_async_context(store.reopen()))
            all_told.append(await stack.enter_async_context(watching(other, "c")))
        for number in range(1, 4):
            await store.commit([PUT], wake=["c"])
            await wait_until(lambda number=number: sum(told.count for told in all_told) == 5 + number)  # type: ignore[misc]  # default binds it
        assert sorted(told.count for told in all_told) == [1, 1, 2, 2, 2], "the one that has waited longest is told"


async def test_a_wake_passes_over_handles_that_died(store: RedisStore, redis_url: str, options: RedisOptions) -> None:
    names, connector = Names(options.network), Connector(redis_url, options)
    for number in range(20):
        await connector.call("ZADD", names.sleepers("c"), number, b"dead%d" % number)
    await connector.close()
    async with watching(store, "c") as told:
        await store.commit([PUT], wake=["c"])
        await wait_until(lambda: told.count == 2)


async def test_an_entry_that_was_not_renewed_is_forgotten(
    store: RedisStore, redis_url: str, options: RedisOptions
) -> None:
    """A handle whose host went away keeps its connection, as far as the server can tell, for minutes."""
    names, connector = Names(options.network), Connector(redis_url, options)
    now_ms = await store.time() // 1_000
    await connector.call(
        "ZADD", names.sleepers("c"), now_ms - int(sleepers.KEEP_SEC * 1_000) - 1, b"gone", now_ms, b"alive"
    )
    async with watching(store, "c"):
        members = await connector.call("ZRANGE", names.sleepers("c"), 0, -1)
        left_ms = await connector.call("PTTL", names.sleepers("c"))
    await connector.close()
    assert b"gone" not in members and b"alive" in members and len(members) == 2
    assert 0 < left_ms <= sleepers.KEEP_SEC * 1_000


async def test_a_wake_for_a_watch_that_was_left_goes_to_somebody_else(
    store: RedisStore, redis_url: str, options: RedisOptions
) -> None:
    connector, names = Connector(redis_url, options), Names(options.network)
    async with store.reopen() as opened:
        other = cast("RedisStore", opened)
        async with watching(other, "c"):
            pass
        # As if the word that it left had been lost: it is entered again, and before the one that waits.
        await connector.call("ZADD", names.sleepers("c"), 0, other._sleepers._name)
        async with watching(other, "keeps-it-subscribed"), watching(store, "c") as told:
            await connector.call("ZADD", names.sleepers("c"), 0, other._sleepers._name)
            await store.commit([PUT], wake=["c"])
            await wait_until(lambda: told.count == 2, what="the wake that came to the wrong handle")
    await connector.close()


async def test_a_wake_for_a_watch_that_was_left_comes_there_once(
    store: RedisStore, redis_url: str, options: RedisOptions
) -> None:
    connector, names = Connector(redis_url, options), Names(options.network)
    async with watching(store, "keeps-it-subscribed"):
        await connector.call("ZADD", names.sleepers("c"), 0, store._sleepers._name)
        await store.commit([PUT], wake=["c"])

        async def is_gone() -> bool:
            return bool(await connector.call("EXISTS", names.sleepers("c")) == 0)

        await wait_until(is_gone, what="its entry is struck out")
        async with watching(store, "c") as told:
            await store.commit([PUT], wake=["c"])
            await wait_until(lambda: told.count >= 2, what="a wake for whoever watches it later")
    await connector.close()


async def test_who_was_told_stays_a_sleeper_and_one_that_hangs_is_told_once(
    store: RedisStore, redis_url: str, options: RedisOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleepers, "QUIET_SEC", 0.01)
    connector, names = Connector(redis_url, options), Names(options.network)
    hung = await connector.connect()
    hung.tell("SUBSCRIBE", b"hung")  # it hears, and never acts
    await hung.ask("PING")
    await connector.call("ZADD", names.sleepers("c"), 0, b"hung")
    async with watching(store, "c") as told:
        await store.commit([PUT], wake=["c"])  # the one that hangs has waited longest
        for number in range(4):
            await wait_until(partial(is_first, connector, names, store), what="it has its place again")
            await store.commit([PUT], wake=["c"])
            await wait_until(lambda number=number: told.count == 2 + number)  # type: ignore[misc]  # default binds it
    hung.close()
    await connector.close()


async def is_first(connector: Connector, names: Names, store: RedisStore) -> bool:
    """Return whether the handle is the next to be told."""
    return bool((await connector.call("ZRANGE", names.sleepers("c"), 0, 0)) == [store._sleepers._name])


async def test_a_watch_that_is_left_is_struck_out(store: RedisStore, redis_url: str, options: RedisOptions) -> None:
    connector, names = Connector(redis_url, options), Names(options.network)
    async with watching(store, "c", "d"):
        assert await connector.call("EXISTS", names.sleepers("c"), names.sleepers("d")) == 2
    assert await connector.call("EXISTS", names.sleepers("c"), names.sleepers("d")) == 0
    await connector.close()


async def test_a_watch_looks_again_after_its_subscription_was_lost(
    proxy: CutProxy, options: RedisOptions, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleepers, "RECONNECT_SEC", 0.01)
    async with RedisStore.open(proxy.url, options) as far, watching(far, "c") as told:
        proxy.cut(Cut.AFTER)
        await store.commit([PUT], wake=["c"])  # the subscription breaks with the message that it carries
        await wait_until(lambda: told.count == 2, what="a look after the subscription was lost")
        await store.commit([PUT], wake=["c"])
        await wait_until(lambda: told.count == 3, what="a wake over the new subscription")


async def test_two_watches_of_one_handle_are_told_in_turn(store: RedisStore) -> None:
    async with watching(store, "c") as first, watching(store, "c", "d") as second:
        for number in range(4):
            (outcome,) = await store.commit([PUT], wake=["c"])
            assert isinstance(outcome, Committed)
            await wait_until(lambda number=number: first.count + second.count == 3 + number)  # type: ignore[misc]  # default binds it
        assert (first.count, second.count) == (3, 3)


async def test_a_watch_of_many_channels_enters_all_in_one_step(store: RedisStore) -> None:
    channels = [f"lane.{number}" for number in range(1_000)]
    async with watching(store, *channels) as told:
        await store.commit([PUT], wake=channels[-3:])
        await wait_until(lambda: told.count >= 2)


@pytest.mark.parametrize("version", ["redis_url", "redis62_url"])
async def test_a_user_who_may_wake_nobody_is_told_what_was_written(
    version: str, request: pytest.FixtureRequest, send: Send, options: RedisOptions, rights: tuple[str, ...]
) -> None:
    """Since Redis 7 a user has no channels but those that are named."""
    url = request.getfixturevalue(version)
    some = ("resetkeys", f"~{{{options.network}}}:*", "resetchannels", "-@all", *rights)
    await send(url, "ACL", "SETUSER", "mute", "on", ">secret", *some)
    async with (
        RedisStore.open(url, options) as store,
        watching(store, "c"),
        RedisStore.open(url.replace("//", "//mute:secret@"), options) as mute,
    ):
        (outcome,) = await mute.commit([PUT], wake=["c"])
        assert isinstance(outcome, Committed)
        assert await store.get([POOL("p")]) == [Entry(POOL("p"), b"1", outcome.revision)]

"""What the store tells `converge doctor`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from converge.contracts.store import Durability, Inspection, Level
from converge.errors import StoreRefused, StoreUnavailable, StoreUnsafe, Unsupported
from converge.testing.fixtures import wait_until
from converge.testing.servers import redis_server
from converge_store_redis import RedisOptions, RedisStore

Send = Callable[..., Awaitable[Any]]


def levels(told: Inspection) -> dict[str, Level]:
    """Return the worst level of each code."""
    return {one.code: one.level for one in told.findings}


async def test_a_server_is_told_as_its_settings_are_now(send: Send) -> None:
    with redis_server() as url:
        async with RedisStore.open(url) as store:
            told = await store.inspect()
            assert told.durability is store.durability is Durability.D1
            assert told.product.startswith("Redis 8.") and told.is_tested and not told.role
            assert levels(told)["durability"] is Level.WARNING and levels(told)["memory"] is Level.WARNING
            for setting in (("appendfsync", "always"), ("maxmemory", "1gb")):
                await send(url, "CONFIG", "SET", *setting)
            told = await store.inspect()
            assert told.durability is Durability.D2 and set(levels(told).values()) == {Level.OK}
            await send(url, "CONFIG", "SET", "no-appendfsync-on-rewrite", "yes")
            told = await store.inspect()
            assert told.durability is Durability.D1
            assert [one.mend for one in told.findings if one.level is Level.WARNING] == [
                "set no-appendfsync-on-rewrite no"
            ]
            await send(url, "CONFIG", "SET", "appendfsync", "no")
            texts = [one.text for one in (await store.inspect()).findings if one.code == "durability"]
            assert len(texts) == 2 and "half a minute" in texts[0], "each weak setting is named"
            await send(url, "CONFIG", "SET", "maxmemory", "100kb")
            assert levels(await store.inspect())["memory"] is Level.ERROR
            await send(url, "CONFIG", "SET", "appendonly", "no")
            assert (await store.inspect()).durability is Durability.D0


async def test_a_replica_that_lags_and_a_primary_that_may_be_split_are_told(send: Send) -> None:
    with (
        redis_server(options=("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")) as url,
        redis_server(options=("--replicaof", f"127.0.0.1 {urlsplit(url).port}")),
    ):
        async with RedisStore.open(url) as store:

            async def is_known() -> bool:
                return "replicas" in levels(await store.inspect())

            await wait_until(is_known, timeout=20)

            async def is_fine() -> bool:
                return levels(await store.inspect())["replicas"] is Level.OK

            await wait_until(is_fine, timeout=20)
            told = await store.inspect()
            assert told.role == "primary" and levels(told)["split"] is Level.WARNING
            await send(url, "CONFIG", "SET", "min-replicas-to-write", "1")
            assert "split" not in levels(await store.inspect())


async def test_an_old_server_is_supported_and_told(redis62_url: str, options: RedisOptions) -> None:
    async with RedisStore.open(redis62_url, options) as store:
        told = await store.inspect()
    assert told.product.startswith("Redis 6.2") and told.is_tested


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_refused_with_one_line(policy: str) -> None:
    with redis_server(options=("--maxmemory-policy", policy)) as url:
        with pytest.raises(StoreUnsafe, match=f"maxmemory-policy {policy}") as refused:
            async with RedisStore.open(url):
                pass
        assert "noeviction" in str(refused.value) and "\n" not in str(refused.value)


async def test_keys_of_another_program_are_left_alone_and_refused(
    redis_url: str, options: RedisOptions, send: Send
) -> None:
    key = f"{{{options.network}}}:z:ready"
    await send(redis_url, "SET", key, "theirs")
    with pytest.raises(StoreRefused, match="another program") as refused:
        async with RedisStore.open(redis_url, options):
            pass
    assert key in str(refused.value)
    assert await send(redis_url, "KEYS", f"{{{options.network}}}*") == [key.encode()], "nothing was written"


async def test_a_member_of_a_cluster_is_refused_with_the_url_that_finds_it() -> None:
    with (
        redis_server(options=("--cluster-enabled", "yes")) as url,
        pytest.raises(Unsupported, match=r"redis\+cluster://"),
    ):
        async with RedisStore.open(url):
            pass


async def test_a_server_alone_is_refused_where_the_url_says_cluster(redis_url: str) -> None:
    with pytest.raises(StoreUnavailable, match="cluster support disabled"):
        async with RedisStore.open(redis_url.replace("redis://", "redis+cluster://").removesuffix("/0")):
            pass

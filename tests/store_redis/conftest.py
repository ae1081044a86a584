"""The Redis store's driver needs asyncio, so its tests run on that loop only. Servers alone, with sentinels, in a
cluster.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from hiredis import ReplyError

from converge.testing.cuts import CutProxy, cut_proxy
from converge.testing.fixtures import wait_until
from converge.testing.servers import Deployment, free_port, redis_server
from converge_store_redis import RedisOptions, RedisStore
from converge_store_redis.connection import Connection
from converge_store_redis.place import Address

SYNC = ("--repl-diskless-sync-delay", "0")
"""A replica is sent the data at once, instead of after five seconds in which others might ask, too."""

Send = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def options(namespace: str) -> RedisOptions:
    """A network of the test's own."""
    return RedisOptions(network=namespace, connections=4)


PAGE = Path(__file__).parents[2] / "docs/reference/redis-keys.md"


@pytest.fixture(scope="session")
def rights() -> tuple[str, ...]:
    """What the page gives a user: every clause of the kits runs with no more."""
    return tuple(word for word in PAGE.read_text().split() if word[0] == "+")


def with_few_rights(url: str, rights: tuple[str, ...]) -> str:
    """Make a user with the rights, on the networks of tests alone; give the URL with its name."""
    some = ("resetkeys", "~{t*}:*", "resetchannels", "&{t*}:*", "-@all", *rights)

    async def make() -> None:
        connection = await Connection.open(Address("127.0.0.1", urlsplit(url).port or 0), None)
        await connection.ask("ACL", "SETUSER", "few", "on", ">rights", *some)
        connection.close()

    anyio.run(make)
    return url.replace("//", "//few:rights@")


@pytest.fixture(scope="session")
def few_url(redis_url: str, rights: tuple[str, ...]) -> str:
    """Redis 8, as a user with few rights."""
    return with_few_rights(redis_url, rights)


@pytest.fixture(scope="session")
def few62_url(redis62_url: str, rights: tuple[str, ...]) -> str:
    """Redis 6.2, as a user with few rights."""
    return with_few_rights(redis62_url, rights)


@pytest.fixture
async def store(redis_url: str, options: RedisOptions) -> AsyncIterator[RedisStore]:
    """An open store on an empty network."""
    async with RedisStore.open(redis_url, options) as opened:
        yield opened


@pytest.fixture(scope="session")
def proxy(few_url: str) -> Iterator[CutProxy]:
    """A proxy before the server, which breaks connections when it is told to."""
    with cut_proxy(few_url) as made:
        yield made


@pytest.fixture
def seed() -> int:
    """A seed for random choices; a failure shows it with the test's output."""
    drawn = secrets.randbits(32)
    sys.stdout.write(f"seed {drawn}\n")
    return drawn


@pytest.fixture
def send() -> Send:
    """Sends a server a command, past the store: `await send(url, "PING")`."""

    async def send_(url: str, *command: Any) -> Any:
        connection = await Connection.open(Address("127.0.0.1", urlsplit(url).port or 0), None)
        try:
            answer = await connection.ask(*command)
        finally:
            connection.close()
        if isinstance(answer, ReplyError):
            raise answer
        return answer

    return send_


@pytest.fixture
async def sentinels(tmp_path: Path, send: Send) -> AsyncIterator[Deployment]:
    """A primary with a replica, and three sentinels that watch them."""
    with ExitStack() as stack:
        primary = stack.enter_context(redis_server(directory=tmp_path / "primary", options=SYNC))
        port = str(urlsplit(primary).port)
        replica = stack.enter_context(
            redis_server(directory=tmp_path / "replica", options=("--replicaof", f"127.0.0.1 {port}"))
        )

        async def follows() -> bool:
            return b"master_link_status:up" in await send(replica, "INFO", "replication")

        await wait_until(follows, timeout=30, what="the replica follows")
        hosts = []
        for number in range(3):
            folder, own = tmp_path / f"sentinel{number}", free_port()
            folder.mkdir()
            config = folder / "sentinel.conf"
            lines = [f"sentinel monitor main 127.0.0.1 {port} 2", "sentinel down-after-milliseconds main 600"]
            lines += ["sentinel failover-timeout main 3000", "sentinel parallel-syncs main 1"]
            config.write_text("\n".join(lines) + "\n")
            stack.enter_context(redis_server(directory=folder, port=own, config=config))
            hosts.append(f"127.0.0.1:{own}")

        async def agree() -> bool:
            state = [await send(f"redis://{host}", "SENTINEL", "MASTER", "main") for host in hosts]
            known = [one if isinstance(one, dict) else dict(zip(one[::2], one[1::2], strict=True)) for one in state]
            return all((one[b"num-other-sentinels"], one[b"num-slaves"]) == (b"2", b"1") for one in known)

        await wait_until(agree, timeout=30, what="the sentinels know each other and the replica")
        yield Deployment(f"redis+sentinel://{','.join(hosts)}/main/0", primary, replica)


@pytest.fixture
async def cluster(tmp_path: Path, send: Send, namespace: str) -> AsyncIterator[Deployment]:
    """Three primaries of a cluster with a replica each; `primary` owns the slot of the test's network."""
    flags = (
        *SYNC,
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "1000",
        "--cluster-require-full-coverage",
        "no",
    )
    with ExitStack() as stack:
        urls = [stack.enter_context(redis_server(directory=tmp_path / str(n), options=flags)) for n in range(6)]
        ids = [(await send(url, "CLUSTER", "MYID")).decode() for url in urls]
        for number, first in enumerate((0, 5461, 10922)):
            last = (5460, 10921, 16383)[number]
            await send(urls[number], "CLUSTER", "ADDSLOTSRANGE", first, last)
        for number, url in enumerate(urls):
            await send(url, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                await send(urls[0], "CLUSTER", "MEET", "127.0.0.1", urlsplit(url).port)
        for number in range(3, 6):

            async def is_known(number: int = number) -> bool:
                return ids[number - 3].encode() in await send(urls[number], "CLUSTER", "NODES")

            await wait_until(is_known, timeout=30, what="nodes know each other")
            await send(urls[number], "CLUSTER", "REPLICATE", ids[number - 3])

        async def stands() -> bool:
            infos = [await send(url, "CLUSTER", "INFO") for url in urls]
            links = [await send(url, "INFO", "replication") for url in urls[3:]]
            known = all(b"cluster_state:ok" in info and b"cluster_known_nodes:6" in info for info in infos)
            return known and all(b"master_link_status:up" in link for link in links)

        await wait_until(stands, timeout=30, what="the cluster stands")
        slot = await send(urls[0], "CLUSTER", "KEYSLOT", f"{{{namespace}}}:r")
        owner = 0 if slot <= 5460 else 1 if slot <= 10921 else 2
        other = urls[(owner + 1) % 3]
        yield Deployment(f"redis+cluster://127.0.0.1:{urlsplit(other).port}", urls[owner], urls[owner + 3])

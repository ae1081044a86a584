"""What a server's settings promise: the class of durability, or why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping

from converge.contracts.store import Durability
from converge.errors import StoreRefused, StoreUnsafe, Unsupported
from converge_store_redis.connect import Connector

OLDEST = (6, 2)


async def check_server(connector: Connector) -> Durability:
    """Refuse a server that loses tasks silently, takes no writes, or is too old; answer the class that its settings
    give.

    Raises:
        Unsupported: It is part of a cluster, or a sentinel.
        StoreUnsafe: Which setting loses tasks, and what to set.
        StoreRefused: It is too old, or a replica.
    """
    info = await _info(connector)
    where = f"redis at {connector.where}"
    if tuple(int(part) for part in info["redis_version"].split(".")[:2]) < OLDEST:
        raise StoreRefused(f"{where} is version {info['redis_version']}; 6.2 or later is needed")
    if info.get("redis_mode", "standalone") != "standalone":
        raise Unsupported(
            f"{where} runs as a {info['redis_mode']}; this release uses a single server, neither Cluster nor Sentinel"
        )
    if info.get("role") == "slave":
        raise StoreRefused(f"{where} is a replica and takes no writes; name the primary")
    policy = await _setting(connector, "maxmemory-policy") or info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise StoreUnsafe(
            where, "maxmemory-policy", policy, why="may delete tasks silently", mend="set it to noeviction"
        )
    if info.get("aof_enabled") != "1":
        return Durability.D0
    # A service that hides its settings may sync each write, but does not say so: then the lower class is what can be
    # promised.
    return Durability.D2 if await _setting(connector, "appendfsync") == "always" else Durability.D1


async def _info(connector: Connector) -> Mapping[str, str]:
    found = {"redis_version": "0"}
    for section in ("server", "memory", "persistence", "replication"):
        for line in (await connector.call("INFO", section)).decode(errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon:
                found[name] = value.strip()
    return found


async def _setting(connector: Connector, name: str) -> str | None:
    try:
        answer = await connector.call("CONFIG", "GET", name)
    except StoreRefused:
        return None  # a user without the right to CONFIG, or a service that hides it
    return answer[1].decode() if len(answer) == 2 else None

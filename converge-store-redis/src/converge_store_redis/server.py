"""What a server's settings promise: the class of durability, or why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping

from hiredis import ReplyError

from converge.contracts.store import Durability
from converge.errors import StoreRefused, StoreUnsafe, Unsupported
from converge_store_redis.call import Names
from converge_store_redis.connect import Connector
from converge_store_redis.place import Kind
from converge_store_redis.scripts import load

OLDEST = (6, 2)

SECTIONS = ("server", "memory", "persistence", "replication")
SETTINGS = ("maxmemory-policy", "appendfsync", "no-appendfsync-on-rewrite", "min-replicas-to-write")

HIDDEN = ""
"""The value of a setting that a user without the right to CONFIG does not see."""


async def check_server(connector: Connector, names: Names) -> Durability:
    """Refuse a server that loses tasks silently, takes no writes, is too old, or has other programs' keys where ours
    would be; return the class that its settings give.

    Raises:
        Unsupported: It is part of a cluster, or a sentinel, and the URL does not say so.
        StoreUnsafe: Which setting loses tasks, and what to set.
        StoreRefused: It is too old, or a replica; or which key is not ours.
    """
    found = await facts(connector)
    where = f"redis at {connector.where}"
    if version_of(found) < OLDEST:
        raise StoreRefused(f"{where} is version {found.get('redis_version', 'unknown')}; 6.2 or later is needed")
    mode = found.get("redis_mode", "standalone")
    if mode != ("cluster" if connector.place.kind is Kind.CLUSTER else "standalone"):
        form = "redis+sentinel://HOST:26379/SERVICE" if mode == "sentinel" else "redis+cluster://HOST:6379"
        form = "redis://HOST:6379/0" if mode == "standalone" else form
        raise Unsupported(f"{where} runs as {mode}, and the URL is for another kind of server; write {form}")
    if (policy := found["maxmemory-policy"]) != "noeviction":
        raise StoreUnsafe(
            where, "maxmemory-policy", policy, why="may delete tasks silently", mend="set it to noeviction"
        )
    await _check_keys(connector, names, where)
    return durability_of(found)


async def facts(connector: Connector) -> Mapping[str, str]:
    """Return the fields of INFO, and the settings that matter, by name."""
    found: dict[str, str] = {}
    for section in SECTIONS:
        found |= parsed(await connector.call("INFO", section))
    for name in SETTINGS:
        found[name] = await _setting(connector, name)
    # INFO has it, too, for users who may not call CONFIG.
    found["maxmemory-policy"] = found["maxmemory-policy"] or found.get("maxmemory_policy", "noeviction")
    return found


def version_of(found: Mapping[str, str]) -> tuple[int, int]:
    """Return the version that the server says it is compatible with."""
    major, _, rest = found.get("redis_version", "0.0").partition(".")
    return int(major), int(rest.partition(".")[0] or 0)


def durability_of(found: Mapping[str, str]) -> Durability:
    """Return the class that the settings give. A service that hides them may sync each write, but does not say so: then
    the lower class is what can be promised.
    """
    if found.get("aof_enabled") != "1":
        return Durability.D0
    is_synced = found["appendfsync"] == "always" and found["no-appendfsync-on-rewrite"] != "yes"
    return Durability.D2 if is_synced else Durability.D1


def parsed(answer: object) -> dict[str, str]:
    """Return the fields of an answer to INFO; none if it was refused."""
    if isinstance(answer, ReplyError) or not isinstance(answer, bytes | str):
        return {}
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


async def _setting(connector: Connector, name: str) -> str:
    try:
        answer = await connector.call("CONFIG", "GET", name)
    except StoreRefused:
        return HIDDEN  # a user without the right to CONFIG, or a service that hides it
    return next((value.decode() for value in answer.values()), HIDDEN)


async def _check_keys(connector: Connector, names: Names, where: str) -> None:
    wanted = {
        names.values: "hash",
        names.counter: "string",
        **dict.fromkeys(names.sets.values(), "zset"),
    }
    kinds = await connector.evaluate(load("types"), list(wanted), [], writes=False)
    for (key, kind), found in zip(wanted.items(), kinds, strict=True):
        if found.decode() not in (kind, "none"):
            raise StoreRefused(
                f'{where} has a {found.decode()} of another program at our key "{key.decode()}", where a {kind} would '
                "be; choose another network or database, or remove that key"
            )

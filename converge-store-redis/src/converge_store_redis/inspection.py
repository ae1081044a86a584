"""What the Redis store tells `converge doctor`: what an acknowledged write survives, the room, the replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from converge.contracts.store import Durability, Finding, Inspection, error, fine, warning
from converge_store_redis.place import Kind, Place
from converge_store_redis.server import HIDDEN, durability_of, version_of

TESTED = ((6, 2), (8, 0))
"""From the first, and from the second on: what the tests of this release run on. Others are expected to work."""

ROOM = 0.8
"""The part of its memory above which doctor warns."""

LAG_SEC = 5
"""A replica that has said nothing for so long would lose what was written since, if it took over."""


def inspection(found: Mapping[str, str], place: Place, where: str) -> Inspection:
    """Return what the server's facts mean for an operator."""
    is_valkey = found.get("server_name") == "valkey" or "valkey_version" in found
    product = f"Valkey {found.get('valkey_version', '')}" if is_valkey else f"Redis {found.get('redis_version', '')}"
    version = version_of(found)
    has_replicas = place.kind in (Kind.SENTINEL, Kind.CLUSTER) or found.get("connected_slaves", "0") != "0"
    return Inspection(
        durability=durability_of(found),
        product=product.strip(),
        role="" if not has_replicas else "primary" if found.get("role") == "master" else "replica",
        is_tested=not is_valkey and (version == TESTED[0] or version[0] == TESTED[1][0]),
        findings=(*_durability(found), *_room(found), *_disk(found), *_replicas(found, place), *_way(place, where)),
    )


def _durability(found: Mapping[str, str]) -> Iterator[Finding]:
    durability, synced = durability_of(found), found["appendfsync"]
    if durability is Durability.D0:
        text = "appendonly is no: what was acknowledged is lost with the server, whatever snapshots there are"
        yield warning("durability", text, "set appendonly yes, and appendfsync always to survive a power cut")
    elif durability is Durability.D2:
        yield fine("durability", "appendonly is yes, appendfsync always: each write is on the disk")
    elif synced == HIDDEN:
        text = "appendonly is yes; the user may not see appendfsync, so that D1 is what can be promised"
        yield warning("durability", text, "give the user +config|get")
    elif synced != "always":
        lost = "half a minute" if synced == "no" else "second or two"
        text = f"appendonly is yes, appendfsync {synced}: a power cut can lose the last {lost}"
        yield warning("durability", text, "set appendfsync always, which costs a disk write for each call")
    if durability is not Durability.D0 and found["no-appendfsync-on-rewrite"] == "yes":
        text = "no-appendfsync-on-rewrite is yes: nothing is synced while a snapshot or the log is written anew"
        yield warning("durability", text, "set no-appendfsync-on-rewrite no")
    yield fine("eviction", "maxmemory-policy is noeviction: no task is deleted to make room")


def _room(found: Mapping[str, str]) -> Iterator[Finding]:
    used, limit = int(found.get("used_memory", "0")), int(found.get("maxmemory", "0"))
    total = int(found.get("total_system_memory", "0"))
    mend = "raise maxmemory, shorten the pools' retention, or run `converge tasks purge`; what makes room always works"
    if not limit:
        said = f"maxmemory is 0; the server uses {_mib(used)} of the {_mib(total)} of its host"
        if total and used > ROOM * total:
            yield error("memory", said, "set maxmemory: without it the system kills the server when its memory is full")
        else:
            yield warning("memory", said, "set maxmemory, so that a full server refuses work instead of being killed")
    elif used >= limit:
        yield error("memory", f"the server uses {_mib(used)}, its maxmemory: it takes no new tasks", mend)
    elif used > ROOM * limit:
        yield warning("memory", f"the server uses {_mib(used)} of {_mib(limit)} (maxmemory)", mend)
    else:
        yield fine("memory", f"the server uses {_mib(used)} of {_mib(limit)} (maxmemory)")


def _disk(found: Mapping[str, str]) -> Iterator[Finding]:
    broken = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if found.get(name, "ok") != "ok"
    ]
    if broken:
        text = f"the server could not write to its disk: {', '.join(broken)} is not ok"
        yield error("disk", text, "make room on its disk; see its log")


def _replicas(found: Mapping[str, str], place: Place) -> Iterator[Finding]:
    replicas = [
        dict(pair.partition("=")[::2] for pair in value.split(","))
        for name, value in found.items()
        if name.startswith("slave") and name[5:].isdigit()
    ]
    if place.kind in (Kind.SENTINEL, Kind.CLUSTER) and not replicas:
        yield error("replicas", "the primary has no replica: nobody takes over if it dies", "start one")
    for one in replicas:
        name, lag = f"the replica {one.get('ip')}:{one.get('port')}", int(one.get("lag") or 0)
        if one.get("state") != "online" or lag > LAG_SEC:
            text = f"{name} is {one.get('state')}, and was last heard {lag} s ago"
            yield warning("replicas", text, "look at it: what was written since is lost if it takes over")
        else:
            behind = int(found.get("master_repl_offset", "0")) - int(one.get("offset") or 0)
            yield fine("replicas", f"{name} is online, {behind:,} bytes behind")
    if replicas and found["min-replicas-to-write"] == "0":
        text = "min-replicas-to-write is 0: a primary that is cut off goes on acknowledging what a failover discards"
        yield warning("split", text, "set min-replicas-to-write 1 and min-replicas-max-lag 5")


def _way(place: Place, where: str) -> Iterator[Finding]:
    host = where.rpartition(":")[0]
    if place.kind is Kind.UNIX or place.is_tls or host in ("localhost", "::1") or host.startswith("127."):
        return
    yield warning("tls", f"the connection to {where} is not encrypted", "use rediss://, or a network that you trust")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"

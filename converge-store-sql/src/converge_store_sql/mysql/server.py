"""What a server of MariaDB or MySQL is, and what its settings promise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from converge.contracts.store import Durability, Finding, Inspection, error, fine, warning
from converge.errors import StoreRefused, StoreUnsafe, Unsupported
from converge_store_sql.mysql.connect import Connections
from converge_store_sql.way import way

OLDEST = {"MariaDB": (10, 6), "MySQL": (8, 0)}
"""The first versions with `skip locked`, without which claims would wait for each other."""

TESTED = {"MariaDB": ((10, 11),), "MySQL": ()}

PACKET_BYTES = 4_194_304
"""The least that the server must take at once: the longest value, written in hexadecimal, and its surroundings."""

FULL = "1"
"""`innodb_flush_log_at_trx_commit` with which a commit is on the disk before it is acknowledged."""

UNSYNCED = ("nosync", "littlesync")
"""Values of `innodb_flush_method` for tests: the disk is not waited for."""

_NAMES = (
    "version", "version_comment", "max_allowed_packet", "innodb_flush_log_at_trx_commit", "innodb_doublewrite",
    "read_only", "wsrep_on", "sync_binlog", "log_bin", "binlog_format",
    "innodb_flush_method",
)  # fmt: skip


async def settings(connections: Connections) -> dict[str, str]:
    """Return the server's settings, by name; those that it has not are missing."""
    names = ", ".join(f"'{name}'" for name in _NAMES)
    rows = await connections.read(f"show global variables where variable_name in ({names})")
    found = {_text(name).lower(): _text(value) for name, value in rows}
    ((before, _, after),) = await connections.read("select sysdate(6), sleep(0.002), sysdate(6)")
    found["sysdate_is_now"] = "ON" if before == after else "OFF"
    return found


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def product(found: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    """Return whose server it is, and its version."""
    name = "MariaDB" if "mariadb" in (found["version"] + found.get("version_comment", "")).lower() else "MySQL"
    numbers = re.findall(r"\d+", found["version"])[:3]
    return name, tuple(map(int, numbers))


def check(found: Mapping[str, str], where: str) -> None:
    """Refuse a server on which the contract cannot be kept.

    Raises:
        Unsupported: It is too old, or has several primaries.
        StoreUnsafe: Its clock stands still within a call.
        StoreRefused: It takes no writes, or too little at once.
    """
    name, version = product(found)
    if version < OLDEST[name]:
        raise Unsupported(f"{where} runs {name} {found['version']}; MariaDB 10.6 or MySQL 8.0 or later is needed")
    if found["sysdate_is_now"] == "ON":
        raise StoreUnsafe(
            where,
            "sysdate-is-now",
            "on",
            why="lets a call that waited for a lock act on the time before its wait",
            mend="start the server without sysdate-is-now",
        )
    if found.get("wsrep_on") == "ON":
        raise Unsupported(
            f"{where} is part of a Galera cluster, whose primaries draw revisions in no common order; use a single "
            "primary"
        )
    if found.get("read_only") not in (None, "OFF", "0"):
        raise StoreRefused(f"{where} is read-only (read_only = {found['read_only']}); name the primary")
    if found.get("log_bin") in ("ON", "1") and found.get("binlog_format") == "STATEMENT":
        raise StoreRefused(
            f"{where} logs statements for its replicas (binlog_format = STATEMENT), which refuses what is written at "
            "READ COMMITTED; set binlog_format to MIXED or ROW"
        )
    if int(found["max_allowed_packet"]) < PACKET_BYTES:
        raise StoreRefused(
            f"{where} takes {found['max_allowed_packet']} bytes at once; set max_allowed_packet to {PACKET_BYTES} or "
            "more"
        )


def durability(found: Mapping[str, str]) -> Durability:
    """Return what an acknowledged commit survives with these settings."""
    flush = found.get("innodb_flush_log_at_trx_commit", FULL)
    if flush == "0":
        return Durability.D0  # up to a second of commits is only in the server's memory
    is_weak = (
        found.get("innodb_doublewrite") in ("OFF", "0") or found.get("innodb_flush_method", "").lower() in UNSYNCED
    )
    return Durability.D1 if flush == "2" or is_weak else Durability.D2


async def inspected(connections: Connections) -> Inspection:
    """Return what the server's settings, and the way to it, mean for an operator."""
    ciphers = await connections.read("show session status like 'Ssl_cipher'")  # none where the server has no TLS
    is_encrypted = any(cipher for _, cipher in ciphers)
    return inspection(await settings(connections), connections.where, is_encrypted=is_encrypted)


def inspection(found: Mapping[str, str], where: str = "", *, is_encrypted: bool = True) -> Inspection:
    """Return what the settings mean for an operator."""
    name, version = product(found)
    return Inspection(
        durability=durability(found),
        product=f"{name} {'.'.join(map(str, version))}",
        role="" if found.get("read_only") in (None, "OFF", "0") else "replica",
        is_tested=version[:2] in TESTED[name],
        findings=(*_findings(found), *way(where, is_encrypted=is_encrypted, adds="?ssl=true, or ?ssl_ca=PATH,")),
    )


def _findings(found: Mapping[str, str]) -> Iterator[Finding]:
    flush = found.get("innodb_flush_log_at_trx_commit", FULL)
    if flush not in (FULL, "3"):
        what = "a crash of the server" if flush == "0" else "a power cut"
        text = f"innodb_flush_log_at_trx_commit is {flush}: {what} can lose the last second of what was acknowledged"
        # The second is what some choose; the first loses what a killed server had acknowledged.
        kind = error if flush == "0" else warning
        yield kind("durability", text, _set_global("innodb_flush_log_at_trx_commit"))
    if found.get("innodb_doublewrite") in ("OFF", "0"):
        text = "innodb_doublewrite is off: a power cut can tear a page"
        yield warning("durability", text, "innodb_doublewrite = on in the server's option file; restart it")
    if (method := found.get("innodb_flush_method", "")).lower() in UNSYNCED:
        text = f"innodb_flush_method is {method}: a power cut may destroy the database"
        yield error("durability", text, "innodb_flush_method = O_DIRECT in the server's option file; restart it")
    if durability(found) is Durability.D2:
        yield fine("durability", f"innodb_flush_log_at_trx_commit is {flush}: each commit is on the disk")
    if found.get("log_bin") in ("ON", "1") and found.get("sync_binlog") != "1":
        text = f"sync_binlog is {found.get('sync_binlog')}: after a power cut a replica may have other data"
        yield warning("replica", text, _set_global("sync_binlog"))


def _set_global(name: str) -> str:
    return f"set global {name} = 1; and {name} = 1 in the server's option file"

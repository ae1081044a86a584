"""The leases of a store: which processes there are, until when, and what is held under each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from converge.codec import decode, moment_or
from converge.contracts.store import Entry, Store
from converge.errors import SchemaTooNew, TornRecord
from converge.model.identity import agent_id
from converge.model.keys import AGENT, EXPIRY, HELD, LEASE
from converge.services.store.pages import count_all, get_all, read_all


@attrs.frozen(kw_only=True)
class LeaseSeen:
    """One process: its lease (hex), its node's key and endpoints, how long its lease runs (negative: it has passed),
    its agents and claims; its host, its id there, its release, and when it started (store time, microseconds), empty
    and 0 where its release does not say; the codes of why it is not ready (none: it is; None: it does not say).
    """

    id: str
    node: str
    endpoints: tuple[str, ...]
    remaining_sec: float
    agents: int
    held: int
    host: str = ""
    pid: int = 0
    release: str = ""
    started: int = 0
    unready: tuple[str, ...] | None = None

    @property
    def is_alive(self) -> bool:
        return self.remaining_sec >= 0

    @property
    def is_ready(self) -> bool | None:
        """Whether it works, by its lease and its own account; None: it does not say."""
        return False if not self.is_alive else None if self.unready is None else not self.unready

    @property
    def node_id(self) -> str:
        """The process's id, as logs and descriptors have it; empty where its record does not say it."""
        return id_of_node(self.node)


def id_of_node(node_key: object) -> str:
    """Return the id of the node that has this key (hex, as in leases and descriptors); empty where it is none."""
    try:
        return agent_id(bytes.fromhex(str(node_key))) if node_key else ""
    except ValueError:
        return ""


async def node_ids(store: Store, lease_ids: Iterable[bytes]) -> dict[bytes, str]:
    """Return the id of the process that has each lease; empty where it is not known.

    Raises:
        StoreError: As `Store.get`.
    """
    ids = sorted(set(lease_ids))
    entries = await get_all(store, [LEASE(id_) for id_ in ids])
    return {id_: _node_id(entry) for id_, entry in zip(ids, entries, strict=True)}


def _node_id(entry: Entry | None) -> str:
    try:
        return "" if entry is None else id_of_node(decode(entry.value, dict[str, Any], "lease").get("node"))
    except (TornRecord, SchemaTooNew):
        return ""


async def leases(store: Store) -> list[LeaseSeen]:
    """Return the leases that have not been ended, those that run longest first.

    Raises:
        StoreError: As `Store.scan`.
    """
    remaining = await _remaining(store)
    records = await get_all(store, [LEASE(id_) for id_ in remaining])
    counts = await count_all(store, [family(id_) for id_ in remaining for family in (AGENT, HELD)])
    every = zip(remaining.items(), records, counts[::2], counts[1::2], strict=True)
    found = [_seen(id_, sec, record, agents, held) for (id_, sec), record, agents, held in every]
    return sorted(found, key=lambda one: -one.remaining_sec)


async def remaining_sec(store: Store) -> dict[str, float]:
    """Return how long each lease (hex) that has not been ended still runs, in seconds; negative: it has passed.

    Raises:
        StoreError: As `Store.scan`.
    """
    return {id_.hex(): sec for id_, sec in (await _remaining(store)).items()}


async def _remaining(store: Store) -> dict[bytes, float]:
    expiries, now = await read_all(store, EXPIRY()), await store.time()
    return {one.key[1]: (moment_or(one.value, 0) - now) / 1_000_000 for one in expiries}


def _seen(id_: bytes, remaining: float, record: Entry | None, agents: int, held: int) -> LeaseSeen:
    try:
        values: dict[str, Any] = decode(record.value, dict[str, Any], "lease") if record is not None else {}
    except (TornRecord, SchemaTooNew):
        values = {}
    return LeaseSeen(
        id=id_.hex(),
        node=str(values.get("node", "")),
        endpoints=tuple(map(str, values.get("endpoints", ()))),
        remaining_sec=remaining,
        agents=agents,
        held=held,
        host=str(values.get("host", "")),
        pid=_number(values.get("pid")),
        release=str(values.get("release", "")),
        started=_number(values.get("started")),
        unready=tuple(map(str, told)) if isinstance(told := values.get("unready"), list) else None,
    )


def _number(value: object) -> int:
    return value if type(value) is int else 0

"""The leases of a store: which processes there are, until when, and what is held under each."""

from __future__ import annotations

from typing import Any

import attrs

from converge.codec import decode, moment_or
from converge.contracts.store import Entry, Store
from converge.errors import SchemaTooNew, TornRecord
from converge.model.keys import AGENT, EXPIRY, HELD, LEASE
from converge.services.store.pages import read_all


@attrs.frozen(kw_only=True)
class LeaseSeen:
    """One process: its lease (hex), its node's key and endpoints, how long its lease runs (negative: it has passed),
    its agents and claims; its host, its id there, its release, and when it started (store time, microseconds), empty
    and 0 where its release does not say.
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

    @property
    def is_alive(self) -> bool:
        return self.remaining_sec >= 0


async def leases(store: Store) -> list[LeaseSeen]:
    """Return the leases that have not been ended, those that run longest first.

    Raises:
        StoreError: As `Store.scan`.
    """
    found = [await _seen(store, entry) for entry in await read_all(store, EXPIRY())]
    return sorted(found, key=lambda one: -one.remaining_sec)


async def _seen(store: Store, expiry: Entry) -> LeaseSeen:
    id_ = expiry.key[1]
    (record,), (agents, held) = await store.get([LEASE(id_)]), await store.count([AGENT(id_), HELD(id_)])
    try:
        values: dict[str, Any] = decode(record.value, dict[str, Any], "lease") if record is not None else {}
    except (TornRecord, SchemaTooNew):
        values = {}
    until = moment_or(expiry.value, 0)
    return LeaseSeen(
        id=id_.hex(),
        node=str(values.get("node", "")),
        endpoints=tuple(map(str, values.get("endpoints", ()))),
        remaining_sec=(until - await store.time()) / 1_000_000,
        agents=agents,
        held=held,
        host=str(values.get("host", "")),
        pid=_number(values.get("pid")),
        release=str(values.get("release", "")),
        started=_number(values.get("started")),
    )


def _number(value: object) -> int:
    return value if type(value) is int else 0

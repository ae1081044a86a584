"""Facts about an opened store: its backend, epoch, clock, contents, and the processes that use it."""

from __future__ import annotations

import time
from collections.abc import Mapping

import attrs
import msgspec

from converge.codec import FIRST, FORMAT
from converge.contracts.store import Range, Store
from converge.ids import id_bytes
from converge.model.keys import ALSO, FAMILIES, KEY, LANE, LEASE, POOL, STATE, TASK
from converge.plugins import PluginHost
from converge.runtime.config.config import Config
from converge.secret import without_password
from converge.services.pools import PoolManager
from converge.services.store import epoch as epochs
from converge.services.store.formats import read_format
from converge.services.store.processes import LeaseSeen, leases
from converge.services.tasks.counts import Census, census
from converge.services.tasks.listing import list_tasks
from converge.services.tasks.records import moment

SAMPLE = 200
"""Records of a family whose versions are looked at: a newer release that has begun to write shows among the first."""


@attrs.frozen(kw_only=True)
class StoreFacts:
    """What `store info` shows. `skew_sec`: store time less this host's clock. `versions`: of the records looked at, how
    many have which. `format`: the newest that is used in it; `newest_format`: the newest that this release knows.
    """

    store: str
    backend: str
    network: str
    contract: int
    features: tuple[str, ...]
    durability: str
    settings: Mapping[str, str | int]
    format: int
    newest_format: int
    epoch: str
    accepted_at: str
    skew_sec: float
    answer_sec: float
    versions: Mapping[str, int]
    keys: Mapping[str, int]
    pools: Mapping[str, Census]
    leases: tuple[LeaseSeen, ...]


async def store_facts(store: Store, config: Config, host: PluginHost) -> StoreFacts:
    """Return all facts; a store of another network has none.

    Raises:
        StoreError: It could not be read.
    """
    backend = host.store_backend(config.store)
    epoch = await epochs.read(store)
    skew, took = await clock_skew(store)
    counted = [family for family in FAMILIES.values() if family not in ALSO]
    counts = await store.count([family() for family in counted])
    pools = await PoolManager(store).pools()
    return StoreFacts(
        store=without_password(config.store),
        backend=backend.name,
        network=config.network,
        contract=backend.contract,
        features=tuple(sorted(feature.value for feature in backend.features)),
        durability=store.durability.name,
        settings=await store.facts(),
        format=(await read_format(store)).number,
        newest_format=FORMAT,
        epoch=epoch.text.partition(".")[0],
        accepted_at=moment(epoch.accepted_at).isoformat() if epoch.accepted_at else "",
        skew_sec=skew,
        answer_sec=took,
        versions=await _versions(store),
        keys={str(family): count for family, count in zip(counted, counts, strict=True) if count},
        pools=await census(store, [pool.id for pool in pools]),
        leases=tuple(await leases(store)),
    )


async def clock_skew(store: Store) -> tuple[float, float]:
    """Return store time less this host's wall clock, known to within half of the second: how long the answer took."""
    began = time.time()
    now = await store.time()
    ended = time.time()
    return now / 1_000_000 - (began + ended) / 2, ended - began


async def _versions(store: Store) -> dict[str, int]:
    pages = await store.scan([Range(family(), None, SAMPLE) for family in (POOL, LANE, KEY, LEASE)])
    ids = [id_bytes("task id", id_) for id_ in await list_tasks(store, None, None, SAMPLE)]
    records = await store.get([family(id_) for id_ in ids for family in (TASK, STATE)]) if ids else ()
    found: dict[str, int] = {}
    for entry in (*(entry for page in pages for entry in page), *records):
        if entry is not None:
            version = _version(entry.value)
            found[version] = found.get(version, 0) + 1
    return found


def _version(value: bytes) -> str:
    try:
        record = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "unreadable"
    return str(record.get("v", FIRST)) if isinstance(record, dict) else str(FIRST)

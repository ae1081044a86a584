"""One task on its way into a store, and what all ways in share: batches of an ordering key, repeats, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from converge.codec import decode, hash_bytes
from converge.contracts.store import ABSENT, Batch, Check, Key, Put
from converge.errors import ConvergeError, DedupConflict
from converge.ids import id_text
from converge.machines.durable import submit
from converge.model.keys import DEDUP, KEY, TASK
from converge.model.place import KeyRow, KeySeen
from converge.model.task import Spec, Task
from converge.services.tasks.records import is_same_task


class Ask:
    """One task on its way in: what is still to do, or what came of it. Plain, since a submit makes one a task."""

    __slots__ = ("id", "lane", "outcome", "spec", "task")

    def __init__(self, id_: bytes, task: Task, spec: Spec, lane: Key) -> None:
        self.id, self.task, self.spec, self.lane = id_, task, spec, lane
        self.outcome: str | ConvergeError | None = None


Group = tuple[list[Ask], KeySeen | None]
"""The tasks of one batch, and the row of their ordering key, if they have one and it is there."""


def ordered_batch(
    group: Sequence[Ask], lanes: Mapping[Key, Check], key: KeySeen | None, now: int, opens: Mapping[Key, Check] = {}
) -> Batch:
    """Return the batch that stores tasks of one ordering key, in order; `key` is its row, `lanes` are open."""
    checks: dict[Key, int] = {}
    puts: dict[Key, bytes] = {}
    for ask in group:
        number = key.row.next if key is not None else 0
        ask.spec = msgspec.structs.replace(ask.spec, number=number)
        is_open = ask.lane not in opens
        lane = lanes[ask.lane] if is_open else opens[ask.lane]
        batch = submit(ask.id, ask.spec, lane, key, now, is_open=is_open)
        # The row as the store has it is what is checked, the row after the last task is what is put.
        for checked, revision in batch.checks:
            checks.setdefault(checked, revision)
        puts |= dict(batch.puts)
        row = decode(puts[KEY(ask.spec.pool, ask.spec.ordering_key)], KeyRow, "key")
        key = KeySeen(key.revision if key is not None else ABSENT, row)
    put_list: list[Put] = list(puts.items())
    return Batch(list(checks.items()), put_list)


def how_to_go_on(asks: Sequence[Ask]) -> str:
    """Return what whoever does not know whether these were stored can do."""
    if all(ask.task.id or ask.task.dedup_key is not None for ask in asks):
        return "submit the same again, which is safe: it has an id or a dedup key"
    first = id_text(next(ask.id for ask in asks if not ask.task.id and ask.task.dedup_key is None))
    others = f" (and {len(asks) - 1:,} more)" if len(asks) > 1 else ""
    return f"look whether task {first}{others} is there, or submit it again with that id, which is safe"


def without_repeats(asks: Sequence[Ask]) -> list[Ask]:
    """Return the first of each task and of each dedup key."""
    seen: set[object] = set()
    first: list[Ask] = []
    for ask in asks:
        marks = {ask.id} if ask.spec.dedup_key is None else {ask.id, (ask.spec.pool, ask.spec.dedup_key)}
        if not marks & seen:
            first.append(ask)
            seen |= marks
    return first


def answers(asks: list[Ask]) -> list[str]:
    """Return the ids; raise what refused the first that was refused, with `ids` of the others."""
    ids = [ask.outcome for ask in asks if type(ask.outcome) is str]
    if len(ids) == len(asks):
        return ids
    refused = next((ask.outcome for ask in asks if isinstance(ask.outcome, ConvergeError)), None)
    assert refused is not None, "what was not stored was refused"
    refused.ids = [ask.outcome if isinstance(ask.outcome, str) else None for ask in asks]  # type: ignore[attr-defined]  # for submit_many's caller
    raise refused


def stored_as(ask: Ask, entries: Mapping[Key, bytes]) -> str | ConvergeError | Key | None:
    """Return the id under which the task is stored already, or that other content is; None if neither; or the key that
    has to be read to tell, whose value, empty if it is gone, is to stand in `entries` then.

    Args:
        ask: The task.
        entries: What is stored of the keys of its id and of its dedup key.

    Raises:
        TornRecord, SchemaTooNew: What is stored cannot be read.
    """
    raw, dedup_key = entries.get(TASK(ask.id)), ask.spec.dedup_key
    if raw is not None:
        is_same = is_same_task(ask.task, ask.spec, decode(raw, Spec, id_text(ask.id)))
        return id_text(ask.id) if is_same else DedupConflict(id_text(ask.id), dedup_key=None)
    if dedup_key is None or (dedup := entries.get(DEDUP(ask.spec.pool, dedup_key))) is None:
        return None
    what = f"dedup key {ask.spec.pool}/{dedup_key}"
    id_hex, digest = decode(dedup, tuple[str, str], what)
    existing = hash_bytes(id_hex, what)
    if digest != ask.spec.digest:  # an earlier release knew fewer contents as the same
        stored = entries.get(TASK(existing))
        if stored is None:
            return TASK(existing)
        if not stored or not is_same_task(ask.task, ask.spec, decode(stored, Spec, id_text(existing))):
            return DedupConflict(id_text(existing), dedup_key=dedup_key)
    return id_text(existing)

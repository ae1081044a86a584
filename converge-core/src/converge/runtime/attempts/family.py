"""The children of an attempt's task: spawned once, looked up when they have ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from converge.codec import decode, decode_plain, encode
from converge.contracts.store import ABSENT, Check, Put
from converge.errors import (
    ChildFailed,
    InvalidValue,
    NotApplied,
    OutcomeUnknown,
    SchemaTooNew,
    StoreBusy,
    StoreError,
    TooManyLanes,
)
from converge.ids import id_bytes, id_text, uuid7
from converge.machines.durable import Step
from converge.machines.events import Cancelled
from converge.machines.lane import LANES
from converge.machines.task import TaskState
from converge.model.keys import CHILD, ENDED, LANE, OUTBOX
from converge.model.place import LaneSeen
from converge.model.task import DURABLE, Ended, Spec, State, Task
from converge.model.working import Child, Spawnable
from converge.runtime.attempts.names import SPAWN, Names
from converge.services.durable.children import Outbox, cancel_one, submitted
from converge.services.durable.ledger import Ledger
from converge.services.durable.limits import CHILDREN, NUMBERED
from converge.services.store.handle import CHORES
from converge.services.store.pages import get_all
from converge.services.store.patience import attempts
from converge.services.tasks.records import check_deadline, kind_of, to_spec
from converge.services.tasks.surroundings import lane_wakes, lanes_seen
from converge.services.tasks.torn import log_once


class Family:
    """Children of one attempt's task."""

    def __init__(self, ledger: Ledger, names: Names) -> None:
        self._ledger, self._names = ledger, names
        self._ended = ledger.ended
        self._own: set[str] = set()  # ids that are known to be children's
        self._outbox = Outbox(ledger.handle)

    async def spawn(self, task: Spawnable, name: str, check_new: Callable[[], None]) -> Child:
        """See `Task.spawn`; `check_new` refuses a child that no attempt has spawned yet."""
        if not isinstance(task, Task) or task.id or task.dedup_key is not None:
            raise InvalidValue("spawn", task, "a Task without an id and a dedup key: its name says what it is")
        name = name or task.type or "child"
        label = self._names.label(SPAWN, name)
        known = await self._ledger.recorded(label)
        if known is not None:
            return self._child(str(decode_plain(known.result, label)), name, label)
        check_new()
        self._ledger.check_room()
        handle = self._ledger.handle
        now = await handle.now()
        id_ = uuid7(now, handle.env.entropy(6), int.from_bytes(handle.env.entropy(6), "big"))
        spec, lane = await self._ledger.patiently(lambda: self._spec(task, now))
        step = await self._ledger.step(encode(id_text(id_)))
        if spec.pool != self._ledger.found.spec.pool or spec.ordering_key is not None:
            await self._through_outbox(label, step, id_, spec)
        else:
            await self._in_own_batch(label, step, id_, spec, lane, now)
        return self._child(id_text(id_), name, label)

    def _child(self, id_: str, name: str, label: str) -> Child:
        self._own.add(id_)
        number = NUMBERED.search(label)
        return Child(id=id_, name=f"{name}{number[0] if number else ''}")

    def checked(self, children: Sequence[Child]) -> dict[str, Child]:
        """Return the children by their ids, each once: who waits for two ends of one waits for ever.

        Raises:
            InvalidValue: One is none, or they are too few or too many.
        """
        if len(children) > CHILDREN or not children:
            raise InvalidValue("children", f"{len(children)} children", f"1 to {CHILDREN:,}")
        for child in children:
            if not isinstance(child, Child):
                raise InvalidValue("children", child, "what task.spawn returned")
        return {child.id: child for child in children}

    async def _spec(self, task: Task, now: int) -> tuple[Spec, LaneSeen | None]:
        """Return the specification of a child, and its lane where there is one.

        Raises:
            TooManyLanes: There is no room for its lane.
        """
        handle = self._ledger.handle
        pool = (await handle.pool(task.pool_id)).pool
        spec = to_spec(task, pool, now, "", kind_of(task, pool.id))
        check_deadline(task, spec)
        lane = (await lanes_seen(handle, [spec])).of(spec)
        if lane is None and (await handle.store.count([LANE(pool.id)]))[0] >= LANES:
            raise TooManyLanes(pool.id, LANES)
        return msgspec.structs.replace(spec, parent=self._ledger.id.hex(), v=DURABLE), lane

    async def _in_own_batch(
        self, label: str, step: Step, id_: bytes, spec: Spec, lane: LaneSeen | None, now: int
    ) -> None:
        handle = self._ledger.handle
        async for number in attempts(handle.env):
            if number:
                lane = (await self._ledger.patiently(lambda: lanes_seen(handle, [spec]))).of(spec)
            batch = submitted(id_, spec, lane, None, now)
            puts: list[Put] = [*batch.puts, (CHILD(self._ledger.id, id_), b"")]
            if spec.due > now:
                handle.saw_due(spec.due)
            wake = lane_wakes(spec, lane)
            if await self._ledger.record(label, step, puts, checks=batch.checks, wake=wake, change=self._as_parent()):
                return
        raise StoreBusy(f"the lane of child {id_text(id_)} kept moving")

    async def _through_outbox(self, label: str, step: Step, id_: bytes, spec: Spec) -> None:
        checks: list[Check] = [(CHILD(self._ledger.id, id_), ABSENT)]  # which stays, so that a late repeat is refused
        puts: list[Put] = [(OUTBOX(id_), encode(spec)), (CHILD(self._ledger.id, id_), b"")]
        await self._ledger.record(label, step, puts, checks=checks, wake=[CHORES], change=self._as_parent())
        with suppress(NotApplied, OutcomeUnknown):  # the child is recorded: whoever sweeps next submits it
            (entry,) = await self._ledger.handle.store.get([OUTBOX(id_)])
            if entry is not None:
                await self._outbox.carry_out([entry])

    def _as_parent(self) -> Any:
        state = self._ledger.found.state
        return None if state is not None and state.has_children else _with_children

    async def look(self, children: Collection[Child]) -> int:
        """Read which of the children have ended; return how many.

        Raises:
            InvalidValue: One is no child of this task, so that nothing would say when it ends.
        """
        unknown = [child for child in children if child.id not in self._ended]
        parent, ids = self._ledger.id, [id_bytes("child", child.id) for child in unknown]
        others = [id_ for id_, child in zip(ids, unknown, strict=True) if child.id not in self._own]
        keys = [CHILD(parent, id_) for id_ in others] + [ENDED(parent, id_) for id_ in ids]
        found = await self._ledger.patiently(lambda: get_all(self._ledger.handle.store, keys))
        for child, entry in zip(unknown, found[len(others) :], strict=True):
            if entry is not None:
                with self._ledger.reading():
                    self._ended[child.id] = decode(entry.value, Ended, f"child {child.id}")
        for id_, entry in zip(others, found, strict=False):
            child_id = id_text(id_)
            if entry is None and child_id not in self._ended:  # an end is read last: a cut removes the child after it
                raise InvalidValue("children", child_id, f"children of task {id_text(parent)}")
            self._own.add(child_id)
        return sum(child.id in self._ended for child in children)

    def earliest(self, children: Collection[Child]) -> Child:
        """Return the child that has ended first, of those that have."""
        ended = [child for child in children if child.id in self._ended]
        return min(ended, key=lambda child: (self._ended[child.id].at, child.id))

    def has_ended(self, children: Collection[Child]) -> bool:
        """Return whether one of the children is known to have ended."""
        return any(child.id in self._ended for child in children)

    def result(self, task_id: str, child: Child) -> Any:
        """Return the result of a child that has ended.

        Raises:
            ChildFailed: It did not complete.
        """
        ended = self._ended[child.id]
        if ended.state != TaskState.COMPLETED:
            raise ChildFailed(task_id, child.id, ended.state, ended.error)
        return decode_plain(ended.result, f"child {child.id}")

    async def cancel(self, children: Sequence[Child]) -> None:
        """Cancel the children, unless they have ended; while the store is away, for as long as the lease lasts."""
        handle = self._ledger.handle
        for child in children:
            failed: StoreError | None = None
            async for _ in attempts(handle.env, handle.lease_settings.lease_sec):
                try:
                    if await self._cancel(id_bytes("child", child.id)):
                        break
                except SchemaTooNew as error:  # whoever reads it cuts it off when this task ends
                    log_once(handle, f"task {child.id}", error)
                    break
                except (NotApplied, OutcomeUnknown) as error:
                    failed = error
            else:
                raise failed or StoreBusy(f"child {child.id} kept moving")

    async def _cancel(self, id_: bytes) -> bool:
        """Cancel a child; return False if it moved. One that is not submitted yet is submitted first: it would begin
        later, and its parent may wait for its end.
        """
        handle = self._ledger.handle
        (waiting,) = await handle.store.get([OUTBOX(id_)])
        if waiting is not None and not await self._outbox.carry_out([waiting]):
            return False
        return await cancel_one(handle, id_, Cancelled("", "another child was first"))


def _with_children(state: State) -> State:
    return msgspec.structs.replace(state, has_children=True)

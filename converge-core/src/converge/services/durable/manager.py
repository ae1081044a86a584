"""TaskManager: what may be done to tasks, those that outlive their attempts included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from converge.codec import encode_plain, stored_text
from converge.contracts.store import Store
from converge.errors import InvalidValue, NoSuchTask, NotWaiting, SchemaTooNew, StoreBusy, TornRecord, ValueTooLarge
from converge.ids import id_bytes, id_text
from converge.machines.durable import call_off, resume
from converge.machines.events import Completed, Event, Failed
from converge.machines.task import TaskState, digest, is_waiting, state_of, step
from converge.model.batch import Batch
from converge.model.keys import CUT
from converge.model.place import Found, Held, Later
from converge.model.task import DURABLE, Calling, State, Task
from converge.services.durable.children import children_of
from converge.services.durable.durable import Durable
from converge.services.durable.limits import NAME, NAME_CHARS, STEP_BYTES, is_valid_name
from converge.services.durable.output import Following
from converge.services.durable.signals import Sent
from converge.services.store.handle import CHORES
from converge.services.store.limits import timed
from converge.services.store.patience import LostAnswer, attempts
from converge.services.tasks import manager
from converge.services.tasks.listing import log_left_out
from converge.services.tasks.records import encode_result, to_task
from converge.services.tasks.surroundings import Moved, find, lane_wakes, lanes_seen, look_around, wakes

GRACE_GREATEST_SEC = 86_400.0
"""The longest grace time of a cancel: who wants more cancels later."""


class TaskManager(manager.TaskManager):
    """Submits tasks and claims them, finishes claims exactly once; signals, follows and ends tasks that wait. Several
    managers of one store handle share one lease.
    """

    def __init__(self, store: Store, *, poll_sec: float = 1.0) -> None:
        super().__init__(store, poll_sec=poll_sec)
        self.durable = Durable(self._handle)
        self._sweep = self.durable.sweep()

    @timed
    async def signal(
        self, task_id: str, name: str, payload: Any = None, *, key: str = "", timeout: float | None = None
    ) -> bool:
        """Send a task a signal, for its `wait_for` of that name, now or later; return False if the task has ended.

        Args:
            payload: Plain data, at most 256 KiB.
            key: Makes a repeat harmless: a second signal of a key is not stored.

        Raises:
            NoSuchTask: There is none.
            TooManyRecords: It has 1,000 that it has not consumed.
            InvalidValue, ValueTooLarge: It cannot be sent as asked.
        """
        data = encode_plain(payload, "payload")
        if len(data) > STEP_BYTES:
            raise ValueTooLarge("payload", len(data), STEP_BYTES)
        if not is_valid_name(name):
            raise InvalidValue("name", name, NAME)
        if type(key) is not str or len(key) > NAME_CHARS:
            raise InvalidValue("key", key, f"text of at most {NAME_CHARS} characters")
        return await self.durable.box.send(Sent(id_bytes("task id", task_id), name, data, stored_text(key)))

    def watch(self, task_id: str, *, after: str = "") -> Following:
        """Iterate over the task's output, progress and states, until it has ended; after the piece with the cursor
        `after`.

        Raises:
            NoSuchTask: There is none.
            InvalidValue: `after` is no cursor of this task, or of nothing that it has put out in this store.
        """
        return Following(self._handle, id_bytes("task id", task_id), after, self._poll_sec)

    @timed
    async def complete(self, task: Task | str, result: Any = None, *, timeout: float | None = None) -> None:
        """End a claim: the task is COMPLETED with this result. Idempotent. By its id it ends a task that waits.

        Raises:
            StaleClaim: The claim is not current; nothing was changed.
            NotWaiting: The task of this id does not wait.
            InvalidValue: The result is not plain data.
        """
        if isinstance(task, str):
            await self._end_waiting(task, Completed(encode_result(result)))
        else:
            await super().complete(task, result)

    @timed
    async def fail(
        self,
        task: Task | str,
        error: str,
        *,
        retry: bool = True,
        after: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """End an attempt: the task is retried after a while, or FAILED if its attempts are used up or `retry` is
        False. By its id it fails a task that waits, for good.

        Args:
            after: Seconds until it is retried, at most 24 hours; None: the task's own delay.

        Raises:
            StaleClaim: The claim is not current; nothing was changed.
            NotWaiting: The task of this id does not wait.
            InvalidValue: `after` is not a number of seconds, or given for a task that is not retried.
        """
        if isinstance(task, str):
            if after is not None:
                raise InvalidValue("after", after, "None: a task that waits is failed for good, and not retried")
            await self._end_waiting(task, Failed(str(error), "", False))
        else:
            await super().fail(task, error, retry=retry, after=after)

    @timed
    async def cancel(
        self, task_id: str, *, by: str = "", why: str = "", grace_sec: float | None = None, timeout: float | None = None
    ) -> bool:
        """Cancel the task unless it is terminal; return whether it was cancelled by this call. A running handler is
        told, and the task's children are cancelled with it.

        Args:
            grace_sec: How long the handler of a task that runs or waits may still record steps, to undo what it did;
                it is told by `CalledOff`. From then on the task can no longer complete.

        Raises:
            NoSuchTask: There is none.
        """
        if grace_sec is None:
            return await super().cancel(task_id, by=by, why=why)
        if type(grace_sec) not in (int, float) or not 0 < grace_sec <= GRACE_GREATEST_SEC:
            raise InvalidValue("grace_sec", grace_sec, f"seconds, above 0 and at most {GRACE_GREATEST_SEC:,.0f}")
        id_ = id_bytes("task id", task_id)
        await self._handle.require_format(DURABLE)
        until = await self._handle.now() + int(grace_sec * 1_000_000)
        calling = Calling(until, stored_text(by), stored_text(why))
        with LostAnswer() as lost:
            async for _ in attempts(self._handle.env, manager.CANCEL_SEC):
                spec, state, place = await find(self._store, id_)
                if place is None or (state is not None and state.calling is not None):
                    return lost.error is not None and state is not None and state.calling == calling
                found = Found(id_, spec, state, place)
                if not isinstance(place, Held) and not is_waiting(state, place):
                    return await super().cancel(task_id, by=by, why=why)
                batch, wake = await self._calling_off(found, calling)
                if await lost.is_committed((await self._handle.commits()).commit, batch, wake):
                    return True
            raise StoreBusy(f"task {task_id} kept moving for {manager.CANCEL_SEC:g} s; cancel it again")

    async def _calling_off(self, found: Found, calling: Calling) -> tuple[Batch, set[str]]:
        if isinstance(found.place, Held):
            batch = call_off(found, calling)
            wake = {f"lease.{found.place.lease.hex()}"}
        else:
            assert found.state is not None and isinstance(found.place, Later), "it waits"
            lane = (await lanes_seen(self._handle, [found.spec])).of(found.spec)
            now = await self._handle.now()
            batch = Batch(*resume(found.id, found.spec, found.state, found.place.revision, lane, now, calling))
            wake = lane_wakes(found.spec, lane)
        if found.state is not None and found.state.has_children:
            batch = batch._replace(puts=[*batch.puts, (CUT(found.id), b"")])
            wake.add(CHORES)
        return batch, wake

    async def _end_waiting(self, task_id: str, event: Event) -> None:
        """End a task that waits, at the place where it was found: of this, a signal, a cancel and its time one wins."""
        id_ = id_bytes("task id", task_id)
        with LostAnswer() as lost:
            async for _ in attempts(self._handle.env, manager.CANCEL_SEC):
                spec, state, place = await find(self._store, id_)
                if lost.error is not None and _has_ended_so(state, event):
                    return
                if not is_waiting(state, place):
                    state_text = state_of(state, place)
                    raise NotWaiting(
                        f"task {id_text(id_)} is {state_text}, and only one that is WAITING is ended by its id"
                    )
                assert place is not None, "it waits"
                found = Found(id_, spec, state, place)
                try:
                    around = await look_around(self._handle, found, needs_lane=False)
                except Moved:
                    continue
                batch = step(found, event, await self._handle.now(), around)
                if await lost.is_committed(
                    (await self._handle.commits()).commit, batch, wakes(found, around, is_ready=False)
                ):
                    return
            raise StoreBusy(f"task {task_id} kept moving for {manager.CANCEL_SEC:g} s; end it again")

    @timed
    async def children(self, task_id: str, *, timeout: float | None = None) -> Sequence[Task]:
        """Return the children of a task, in the order of their ids, which is that of their submits; one that cannot be
        read is left out, and logged.
        """
        tasks: list[Task] = []
        for id_ in await children_of(self._handle, id_bytes("task id", task_id)):
            try:
                tasks.append(to_task(id_, *await find(self._store, id_)))
            except NoSuchTask:
                continue  # its retention has passed
            except (TornRecord, SchemaTooNew) as error:
                log_left_out(error)
        return tasks


def _has_ended_so(state: State | None, event: Event) -> bool:
    """Return whether a waiting task was ended in just this way: how a call whose answer was lost finds it."""
    if state is None or state.token:
        return False
    if isinstance(event, Completed):
        return state.state == TaskState.COMPLETED and bytes(state.result) == event.result
    return state.state == TaskState.FAILED and state.digest == digest(event)

"""TaskManager: submit, claim, finish, cancel, look up."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import anyio
from anyio import lowlevel
from msgspec.structs import astuple

from converge.codec import stored_text
from converge.contracts.store import Store
from converge.contracts.transactions import Within
from converge.errors import (
    InvalidValue,
    LeaseEnded,
    ResultTimeout,
    StaleClaim,
    StoreBusy,
    TornRecord,
)
from converge.ids import check_name, id_bytes
from converge.machines.events import Cancelled, Completed, Event, Failed, Released
from converge.machines.match import Claimer
from converge.machines.task import TaskState, digest, is_terminal, step
from converge.model.keys import STATE, TASK
from converge.model.place import Found, Held
from converge.model.task import Task
from converge.services.store.handle import StoreHandle
from converge.services.store.limits import checked_timeout, timed
from converge.services.store.patience import LostAnswer, attempts
from converge.services.store.processes import node_ids
from converge.services.tasks.finish import Finishes
from converge.services.tasks.listing import list_tasks
from converge.services.tasks.polling import Polling
from converge.services.tasks.records import encode_result, to_task
from converge.services.tasks.retry import Retries
from converge.services.tasks.submitting.riding import Riding
from converge.services.tasks.submitting.submit import Submits
from converge.services.tasks.surroundings import Moved, find, look_around, read_from, read_task, wakes
from converge.services.tasks.sweep import Sweep
from converge.services.tasks.wait import Results

CANCEL_SEC = 5.0
"""How long a cancel is tried again that finds the task elsewhere each time."""

_NONCE = re.compile(r"[0-9a-f]{32}")


class TaskManager:
    """Submits tasks and claims them; finishes claims exactly once. Several managers of one store handle share one
    lease. On what `Store.within` returns it submits, into the caller's transaction, and does nothing else.
    """

    def __init__(self, store: Store, *, poll_sec: float = 1.0) -> None:
        self._handle = StoreHandle.of(store)
        self._store = self._handle.store
        self._submits = Submits(self._handle)
        self._submit = Riding(store).submit if isinstance(store, Within) else self._submits.submit
        self._results = Results(self._handle, poll_sec)
        self._finishes = Finishes(self._handle)
        self._sweep, self._poll_sec = Sweep(self._handle), poll_sec
        self._polling = Polling(self._handle, self._finishes, self._sweep, poll_sec)
        self._retries = Retries(self._handle, self._submit)
        # Task id: the claim that this manager holds, and for which agent.
        self._held: dict[bytes, tuple[Found, str]] = {}

    @timed
    async def submit(self, task: Task, *, timeout: float | None = None) -> str:
        """Store the task; return its id, or that of the task which already has its dedup key and content.

        Raises:
            InvalidValue, InvalidName, ValueTooLarge, NoSuchPool, TooManyLanes, DedupConflict: Nothing was submitted.
            StoreError: As `Store.commit`. Submitting it again is safe if it has an id or a dedup key.
        """
        return (await self._submit([task]))[0]

    @timed
    async def submit_many(self, tasks: Sequence[Task], *, timeout: float | None = None) -> list[str]:
        """Store the tasks in few calls; return their ids in order.

        Raises:
            InvalidValue, InvalidName, ValueTooLarge, NoSuchPool: Nothing was submitted.
            DedupConflict, TooManyLanes: The first that was refused; the others were submitted (`ids` of the error).
            StoreError: As `submit`.
        """
        return await self._submit(tasks)

    @timed
    async def claim(
        self,
        agent_id: str,
        pools: Sequence[str],
        capabilities: Collection[str] = (),
        topics: Collection[str] | None = None,
        types: Collection[str] | None = None,
        limit: int = 1,
        *,
        timeout: float | None = None,
    ) -> list[Task]:
        """Claim up to `limit` ready tasks that the agent may take, best rank first and at most 450; or none.

        The claims live as long as this process's lease, which the first claim opens.

        Raises:
            NoSuchPool, PoolClosed: The pool is not there, or does not admit the agent.
            InvalidValue: The limit is below one.
            LeaseEnded: This process was away from the store for too long; what it held has gone back. Where no node
                keeps the lease, the next claim opens another; memberships are to be made again.
            StoreError: As `Store.commit`; nothing is held, or what is goes back, uncounted, before this process claims
                again.
        """
        check_name("agent", agent_id)
        for name, names in (
            ("pools", pools),
            ("capabilities", capabilities),
            ("topics", topics or ()),
            ("types", types or ()),
        ):
            _check_several(name, names)
        _check_limit(limit)
        await lowlevel.checkpoint()  # a store in memory never waits, and whoever polls it must let others run
        is_due = await self._polling.sweep_sometimes()
        claims = self._polling.claims_of(agent_id, tuple(pools), Claimer.of(capabilities, topics, types), is_due=is_due)
        try:
            found = await self._polling.acquire(claims, limit)
        except LeaseEnded:
            await self._lease_has_ended()
            raise
        tasks, held = list[Task](), dict[bytes, tuple[Found, str]]()
        for one in found:
            try:
                tasks.append(to_task(*astuple(one), by=agent_id))
                held[one.id] = (one, agent_id)
            except TornRecord as error:
                claims.put_away_later(one, error)
        await self._polling.put_unread_away(claims, [one for one, _ in held.values()])
        self._held |= held
        return tasks

    @timed
    async def complete(self, task: Task, result: Any = None, *, timeout: float | None = None) -> None:
        """End the claim: the task is COMPLETED with this result. Idempotent.

        Raises:
            StaleClaim: The claim is not current; nothing was changed.
            InvalidValue: The result is not plain data.
        """
        await self._finish(task, Completed(encode_result(result), stored_text(_checked(task).claimed_by)))

    @timed
    async def fail(
        self, task: Task, error: str, *, retry: bool = True, after: float | None = None, timeout: float | None = None
    ) -> None:
        """End the attempt: the task is retried after a while, or FAILED if that was the last, or not `retry`.

        Args:
            after: Seconds until it is retried, at most 24 hours; None: the task's own delay.

        Raises:
            StaleClaim: The claim is not current; nothing was changed.
            InvalidValue: `after` is not a number of seconds, or given for a task that is not retried.
        """
        if after is not None and (not retry or type(after) not in (int, float) or not after >= 0):
            raise InvalidValue("after", after, "seconds, 0 or more, with a retry")
        await self._finish(
            task, Failed(str(error), _checked(task).claimed_by, retry, self._handle.env.uniform(), after)
        )

    @timed
    async def release(self, task: Task, why: str = "", *, timeout: float | None = None) -> None:
        """Release the claim: the task is ready again at once, and no attempt is counted.

        Raises:
            StaleClaim: The claim is not current; nothing was changed.
        """
        await self._finish(task, Released(_checked(task).claimed_by, _text("why", why)))

    @timed
    async def report(self, agent_id: str, task_id: str, result: Any = None, *, timeout: float | None = None) -> None:
        """Complete a claim that this manager made for the agent, by the task's id.

        Raises:
            StaleClaim: This manager holds no such claim.
        """
        id_ = id_bytes("task id", task_id)
        found, holder = self._held.get(id_, (None, ""))
        if found is None or holder != agent_id:
            raise StaleClaim(task_id, token=0, why="this manager holds no claim on it for that agent")
        await self._finish_found(found, Completed(encode_result(result), agent_id))

    @timed
    async def cancel(self, task_id: str, *, by: str = "", why: str = "", timeout: float | None = None) -> bool:
        """Cancel the task unless it is terminal; return whether this call did. A running handler is told.

        Raises:
            NoSuchTask: There is none.
        """
        id_, cancelled = id_bytes("task id", task_id), Cancelled(_text("by", by), _text("why", why))
        with LostAnswer() as lost:
            async for _ in attempts(self._handle.env, CANCEL_SEC):
                spec, state, place = await find(self._store, id_)
                if place is None:
                    return lost.error is not None and state is not None and state.digest == digest(cancelled)
                found = Found(id_, spec, state, place)
                try:
                    around = await look_around(self._handle, found, needs_lane=False)
                except Moved:
                    continue
                batch = step(found, cancelled, await self._handle.now(), around)
                wake = wakes(found, around, is_ready=False) | (
                    {f"lease.{place.lease.hex()}"} if type(place) is Held else set()
                )
                if await lost.is_committed((await self._handle.commits()).commit, batch, wake):
                    self._held.pop(id_, None)
                    return True
            raise StoreBusy(f"task {task_id} kept moving for {CANCEL_SEC:g} s; cancel it again")

    @timed
    async def retry(self, task_id: str, *, timeout: float | None = None) -> str:
        """Submit a copy of a task that failed or was cancelled; return its id. Idempotent while it is kept.

        One that cannot be read is set aside if nobody holds it, retried as far as its specification is whole, and
        removed. The copy is linked to its task by `trace["retry_of"]`, has no dedup key, and no deadline that has
        passed.

        Raises:
            NoSuchTask: There is none.
            TornRecord: Of its specification too little can be read; it was set aside, for `converge tasks purge`.
            NotRetried: It has not ended, or has completed.
            NoSuchPool, TooManyLanes: As `submit`.
        """
        return await self._retries.retry(id_bytes("task id", task_id))

    @timed
    async def get(self, task_id: str, *, timeout: float | None = None) -> Task:
        """Return the task, wherever it stands.

        While another process works on it, `claimed_by` is the id of that process.

        Raises:
            InvalidName: It is not the text of a task's id.
            NoSuchTask: It was never submitted here, or its retention has passed.
        """
        id_ = id_bytes("task id", task_id)
        spec, state, place = await find(self._store, id_)
        by = self._held[id_][1] if id_ in self._held else ""
        if type(place) is Held and not by:
            by = (await node_ids(self._store, [place.lease]))[place.lease]
        return to_task(id_, spec, state, place, by=by)

    async def result(self, task_id: str, timeout: float | None = None) -> Task:
        """Wait until the task is terminal; return it, whatever its state.

        Raises:
            ResultTimeout: After `timeout` seconds it was not; it goes on.
            InvalidValue: The timeout is no number of seconds.
            NoSuchTask: There is none, or retention has removed it.
        """
        id_, timeout = id_bytes("task id", task_id), checked_timeout(timeout)
        with anyio.move_on_after(timeout) as scope:
            await self._results.wait(id_)
        spec, state = read_from(id_, await self._handle.reads.few(TASK(id_), STATE(id_)))
        if is_terminal(state):
            return to_task(id_, spec, state, None)
        assert scope.cancelled_caught or timeout is not None, "a wait without a timeout ends with a terminal task"
        raise ResultTimeout(task_id, timeout or 0.0)

    async def _lease_has_ended(self) -> None:
        """Forget what was held under leases that ended before; this one's may still be finished (G6)."""
        lease = self._handle.lease_opened
        if lease is not None:
            self._held = {
                id_: held
                for id_, held in self._held.items()
                if isinstance(held[0].place, Held) and held[0].place.lease == lease.id
            }
        await self._handle.let_go()

    async def _finish(self, task: Task, event: Event) -> None:
        id_ = id_bytes("task id", task.id)
        known = self._held.get(id_)
        if not task.token or not _NONCE.fullmatch(task.nonce):
            raise StaleClaim(task.id, token=task.token, why="it was not claimed: finish what `claim` returned")
        if (
            known is not None
            and isinstance(known[0].place, Held)
            and (known[0].place.token, known[0].place.nonce.hex()) == (task.token, task.nonce)
        ):
            await self._finish_found(known[0], event)
            return
        spec, state = await read_task(self._store, id_)
        lease = await self._handle.lease()
        await self._finish_found(Found(id_, spec, state, Held(lease.id, bytes.fromhex(task.nonce), task.token)), event)

    async def _finish_found(self, found: Found, event: Event) -> None:
        try:
            await self._finishes.finish(found, event)
        except StaleClaim:
            self._forget(found)
            raise
        self._forget(found)

    def _forget(self, found: Found) -> None:
        """Forget a claim that is over; the same task may have been claimed again meanwhile, and that claim is not."""
        held, _ = self._held.get(found.id, (None, ""))
        if held is not None and held.place == found.place:
            del self._held[found.id]

    # Last, since its name hides the builtin for every annotation after it.

    @timed
    async def list(
        self,
        *,
        state: TaskState | str | None = None,
        pool_id: str | None = None,
        limit: int = 100,
        timeout: float | None = None,
    ) -> Sequence[Task]:
        """Return up to `limit` tasks in that state (any: the live ones first), of that pool (any: all pools).

        A task that moves while the list is made is in it as it was a moment before, or not at all; one that cannot be
        read is left out, and logged.

        Raises:
            NoSuchPool: With the nearest name: an empty list would hide a typo.
            InvalidValue: There is no such state, or the limit is below one.
        """
        _check_limit(limit)
        try:
            wanted = None if state is None else TaskState(state)
        except ValueError:
            raise InvalidValue("state", state, f"one of {', '.join(TaskState)}") from None
        if pool_id is not None:
            await self._handle.pool(pool_id)
        return tuple((await list_tasks(self._store, wanted, pool_id, limit)).values())


def _checked(task: Task) -> Task:
    if not isinstance(task, Task):
        raise InvalidValue("task", task, "a Task that `claim` returned; by a task's id, `report` completes it")
    return task


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidValue(name, value, "text")
    return str.__str__(value)


def _check_several(name: str, names: object) -> None:
    if isinstance(names, str):
        raise InvalidValue(name, names, f"a sequence of names, such as [{names!r}]")
    if not isinstance(names, Collection):
        raise InvalidValue(name, names, "a sequence of names")
    for one in names:
        check_name(name, one)


def _check_limit(limit: object) -> None:
    if type(limit) is not int or limit < 1:
        raise InvalidValue("limit", limit, "1 or more")

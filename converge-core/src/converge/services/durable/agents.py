"""Virtual agents: named, with a state of their own in the store, run wherever a slot is free, one message at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from converge.codec import decode, decode_plain, encode
from converge.contracts.store import Batch, Store
from converge.errors import AskCycle, HandlerFailed, InvalidName, ResultTimeout
from converge.ids import check_name
from converge.machines.task import TaskState
from converge.model.keys import ACTOR, NAME, Key, fits
from converge.model.task import DURABLE, Task
from converge.services.durable.manager import TaskManager
from converge.services.store.handle import StoreHandle
from converge.services.store.limits import checked_timeout, timed

ASKS = "converge.asks"
"""The capability that agents with `on_ask` have, and the type of the tasks that carry messages to virtual agents."""


ASKED_BY = "converge.asked_by"
"""In the trace of such a task, the virtual agents that wait for its answer: JSON, the first one first."""

ANSWERING: ContextVar[Sequence[tuple[str, str]]] = ContextVar("converge_answering", default=())
"""The virtual agent, pool and key, whose `on_ask` runs, behind those that wait for its answer; none once it has
answered, for what it has left running.
"""


def asked_by(trace: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the virtual agents that wait for a task's answer; of a trace that others have written, none."""
    try:
        return msgspec.json.decode(trace.get(ASKED_BY, "[]"), type=tuple[tuple[str, str], ...])
    except msgspec.MsgspecError:
        return ()


class Actor(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`actor/<pool>/<key>`: the state of a virtual agent after `asks` messages."""

    state: msgspec.Raw = msgspec.Raw(b"null")
    asks: int = 0
    v: int = DURABLE


def actor_key(pool: str, key: object) -> Key:
    """Return the key of a virtual agent's state.

    Raises:
        InvalidName: It is not a valid name.
    """
    if not isinstance(key, str) or not key or not fits(NAME, key):
        raise InvalidName("virtual agent", key, "text of 1 to 200 bytes without NUL")
    return ACTOR(str(check_name("pool", pool)), key)


class AgentRef:
    """One virtual agent, as its callers see it: its first message creates it."""

    def __init__(self, tasks: TaskManager, handle: StoreHandle, pool: str, key: str) -> None:
        self._tasks, self._handle = tasks, handle
        self._place = actor_key(pool, key)

    async def ask(self, payload: Any = None, *, timeout: float | None = None, ask_id: str = "") -> Any:
        """Send the agent a message and return what its `on_ask` answered. Its messages are handled one at a time, in
        the order in which they were stored.

        Args:
            timeout: How long to wait for the answer; the message is handled nevertheless.
            ask_id: A UUID that makes a repeat harmless: it is answered as the first one was.

        Raises:
            AskCycle: It waits itself, perhaps by way of others, for what asks it.
            HandlerFailed: Its handler raised, in each attempt; its state is as before.
            ResultTimeout: There was no answer in time.
            InvalidValue: The timeout is no number of seconds; nothing was sent.
        """
        _, pool, key = self._place
        checked_timeout(timeout)  # before the message is stored
        chain = tuple(ANSWERING.get())
        if (pool, key) in chain:
            names = [f"{one} of pool {other}" for other, one in chain]
            raise AskCycle(f"virtual agent {key} of pool {pool} waits for this answer: {' asks '.join(names)}", names)
        task = Task(
            pool_id=pool,
            id=ask_id,
            type=ASKS,
            required_capabilities=(ASKS,),
            ordering_key=key,
            inputs={"payload": payload},
            trace={ASKED_BY: encode(chain).decode()} if chain else {},
        )
        task_id = await self._tasks.submit(task)
        try:
            done = await self._tasks.result(task_id, timeout)
        except ResultTimeout as error:
            if (await self._tasks.get(task_id)).attempts:
                raise
            why = f"nobody has begun to answer it: run an agent with `on_ask` in pool {pool}, or give it more slots"
            raise ResultTimeout(task_id, error.timeout_sec, why) from error
        if done.state != TaskState.COMPLETED:
            raise HandlerFailed(f"virtual agent {key} of pool {pool} did not answer: {done.state}: {done.error}")
        return done.result

    @timed
    async def state(self, *, timeout: float | None = None) -> Any:
        """Return the agent's state; None if it was never asked."""
        (entry,) = await self._handle.store.get([self._place])
        what = f"virtual agent {self._place[2]}"
        return None if entry is None else decode_plain(decode(entry.value, Actor, what).state, what)

    @timed
    async def forget(self, *, timeout: float | None = None) -> None:
        """Remove the agent's state: the next message starts a new one."""
        await (await self._handle.commits()).commit([Batch((), (), [self._place])])


class AgentRefs:
    """The virtual agents of a store, for programs without a node."""

    def __init__(self, store: Store) -> None:
        self._tasks, self._handle = TaskManager(store), StoreHandle.of(store)

    def agent(self, key: str, *, pool: str) -> AgentRef:
        """Return the virtual agent of this name.

        Raises:
            InvalidName: There cannot be one.
        """
        return AgentRef(self._tasks, self._handle, pool, key)

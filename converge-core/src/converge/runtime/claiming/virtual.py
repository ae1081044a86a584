"""The handler of messages to virtual agents: reads the state, calls `on_ask`, keeps the new state with the answer."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

import msgspec

from converge.codec import decode, decode_plain, encode, encode_plain
from converge.contracts.store import ABSENT, LIMITS
from converge.errors import InvalidValue, NotRunning, SchemaTooNew, ValueTooLarge
from converge.foreign import awaited
from converge.model.task import Task
from converge.model.working import RUNS
from converge.runtime.agents.agent import task_handler
from converge.runtime.agents.hosted import Hosted
from converge.services.durable.agents import ANSWERING, ASKS, Actor, actor_key, asked_by
from converge.threads import called_in_own_thread


def task_handler_of(agent: Hosted) -> Callable[[Task], Any]:
    """Return what works on a task of the agent's: `on_task`, or `on_ask` where it is a message to a virtual agent."""
    plain = task_handler(agent)
    if not agent.kind.is_virtual:
        return plain

    async def either(task: Task) -> Any:
        return await (answer(agent, task) if task.type == ASKS else _called(plain, task))

    return either


async def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    if iscoroutinefunction(function):
        return await awaited(function, *arguments)
    return await called_in_own_thread(function, *arguments)


async def answer(agent: Hosted, task: Task) -> Any:
    """Handle one message; return the answer.

    Raises:
        InvalidValue: `on_ask` did not return a pair, or not of plain data.
        ValueTooLarge: The state does not fit into a value of the store.
        Exception: As `on_ask`.
    """
    runs = RUNS.get()
    if runs is None:
        raise NotRunning(f"task {task.id} is not run here")
    key = actor_key(task.pool_id, task.ordering_key)
    entry = await runs.read(key)
    what = f"virtual agent {task.ordering_key}"
    try:
        actor = Actor() if entry is None else decode(entry.value, Actor, what)
    except SchemaTooNew as error:
        runs.leave(task.id, task.token, error)
        raise
    state, payload = decode_plain(actor.state, what), task.inputs.get("payload")
    waiting = [*asked_by(task.trace), (key[1], key[2])]
    answering = ANSWERING.set(waiting)
    try:
        returned = await _called(agent.agent.on_ask, state, payload)
    finally:
        ANSWERING.reset(answering)
        waiting.clear()
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise InvalidValue("on_ask", type(returned).__name__, "(state, answer), a tuple")
    kept = encode(Actor(msgspec.Raw(encode_plain(returned[0], "state")), actor.asks + 1))
    if len(kept) > LIMITS.value_bytes:
        raise ValueTooLarge("state", len(kept), LIMITS.value_bytes)
    await runs.keep(task.id, task.token, (key, kept, ABSENT if entry is None else entry.revision))
    return returned[1]

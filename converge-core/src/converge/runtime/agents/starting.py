"""`on_start` or `on_stop` of many agents: a bounded number at a time, and none for agents whose class has none."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence

import anyio

from converge.runtime.agents.agent import Agent, call_handler
from converge.runtime.agents.context import begin

AT_A_TIME = 100
"""Agents that start or stop at the same time: most wait for something then, such as a model that is loaded or a
connection.
"""


async def start_all(agents: Sequence[Agent], on_started: Callable[[Agent], None]) -> None:
    """Call `on_start` of each; `on_started` is told of each that returned.

    Raises: What an agent's `on_start` raised first; the others that are under way are cancelled, no further one begins.
    """

    async def start(agent: Agent) -> None:
        if type(agent).on_start is not Agent.on_start:
            await call_handler(agent.on_start)
        on_started(agent)

    try:
        await _each(agents, start)
    except ExceptionGroup as group:
        failure = _first(group)
    else:
        return
    raise failure


async def stop_all(agents: Iterable[Agent]) -> None:
    """Call `on_stop` of each; what one raises is logged, and the others stop as they should."""

    async def stop(agent: Agent) -> None:
        try:
            await call_handler(agent.on_stop)
        except Exception:  # an agent's boundary
            agent.log.exception("on_stop failed")

    await _each([one for one in agents if type(one).on_stop is not Agent.on_stop], stop)


async def _each(agents: Sequence[Agent], do: Callable[[Agent], Coroutine[None, None, None]]) -> None:
    waiting = iter(agents)

    async def work() -> None:
        for agent in waiting:
            begin(agent)
            await do(agent)

    async with anyio.create_task_group() as group:
        for _ in range(min(AT_A_TIME, len(agents))):
            group.start_soon(work)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of the group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

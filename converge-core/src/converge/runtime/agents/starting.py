"""`on_start` or `on_stop` of many agents: a bounded number at a time, and none for agents whose class has none."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import anyio

from converge.foreign import Raised, as_exception, tell
from converge.runtime.agents.agent_log import agent_log
from converge.runtime.agents.boundary import Boundary, handler_of
from converge.runtime.agents.context import begin
from converge.runtime.agents.hosted import Hosted

AT_A_TIME = 100
"""Agents that start or stop at a time: most then wait for something, such as a model or a connection."""


async def start_all(boundary: Boundary, agents: Sequence[Hosted], on_started: Callable[[Hosted], None]) -> None:
    """Call `on_start` of each; `on_started` is called for each that returned.

    Raises: What an agent's `on_start` raised first, or UserCodeExited for what is no `Exception`; the others that are
        under way are cancelled, no further one begins.
    """
    failed: list[Raised] = []

    async def start(agent: Hosted) -> bool:
        if "on_start" in agent.kind.own:
            outcome = await boundary.call(handler_of(agent, "on_start"), before=partial(begin, agent))
            if type(outcome) is Raised:
                failed.append(outcome)
                return False
        on_started(agent)
        return True

    await _each(agents, start)
    if failed:
        raise as_exception(failed[0])


async def stop_all(boundary: Boundary, agents: Iterable[Hosted]) -> None:
    """Call `on_stop` of each; an exception is logged, and the others still stop."""

    async def stop(agent: Hosted) -> bool:
        outcome = await boundary.call(handler_of(agent, "on_stop"), before=partial(begin, agent))
        if type(outcome) is Raised:
            tell(agent_log(agent), logging.ERROR, "on_stop failed", error=outcome.error)
        return True

    await _each([one for one in agents if "on_stop" in one.kind.own], stop)


async def _each(agents: Sequence[Hosted], do: Callable[[Hosted], Awaitable[bool]]) -> None:
    """Do it for each, until one reports a failure."""
    waiting = iter(agents)

    async def work() -> None:
        for agent in waiting:
            if not await do(agent):
                group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for _ in range(min(AT_A_TIME, len(agents))):
            group.start_soon(work)

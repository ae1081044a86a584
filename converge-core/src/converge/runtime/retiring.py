"""One agent that ends alone, while its node goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from converge.errors import LeaseEnded, StoreError
from converge.runtime.agents.context import AGENT, MESSAGE, TASK
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.starting import stop_all
from converge.runtime.parts import Parts
from converge.runtime.stopping import ON_STOP_SEC, RELEASE_SEC
from converge.services.messages.chains import CHAIN

log = logging.getLogger("converge.node")

LOOK_SEC = 0.01
"""How often it is looked whether the agent's handlers have ended."""


async def retire(parts: Parts, agent: Hosted, grace_sec: float) -> None:
    """End an agent: it is listed no longer and claims nothing more at once, its handlers have the grace time, and then
    what it has not done is handed back, or its senders are told. A handler of its own that makes this call is not
    waited for, and goes on after it.
    """
    groups, inboxes = parts.groups, parts.network.post.inboxes
    with anyio.CancelScope(shield=True):
        groups.retire(agent)
        parts.ticks.remove(agent)
        until = anyio.current_time() + grace_sec
        await _withdraw(parts, agent)
        inbox = inboxes.close(agent.id)
        own = AGENT.get() is agent  # a handler of its own waits for this call: it would be waited for in vain
        task = TASK.get() if own else None
        in_tick = own and task is None and not MESSAGE.get()

        def in_message() -> bool:
            return own and inbox is not None and bool(inbox.chain) and inbox.chain is CHAIN.get()

        def has_ended() -> bool:
            is_idle = inbox is None or inbox.is_idle or (own and agent.loop is not None) or in_message()
            return is_idle and not groups.is_busy(agent, task) and (in_tick or not parts.ticks.is_running(agent))

        await _until(has_ended, grace_sec)
        if groups.cancel_tasks(agent, task):
            log.warning("tasks of agent %.16s did not end within %g s; they are handed back", agent.id, grace_sec)
        if not in_tick:
            parts.ticks.cancel(agent)
        for answer in inbox.abandon(but_current=in_message()) if inbox is not None else ():
            answer.drop()
        await _until(has_ended, RELEASE_SEC)
        with anyio.move_on_after(max(ON_STOP_SEC, until - anyio.current_time())):
            await stop_all(parts.boundary, [agent])
        groups.forget(agent)
        parts.executor.forget(agent.id)
        parts.network.hush([agent])
        with anyio.move_on_after(RELEASE_SEC):
            await groups.withdraw([agent])
        parts.kept.keyring.give_back([agent.id])


async def _until(has_ended: Callable[[], bool], within_sec: float) -> None:
    with anyio.move_on_after(within_sec):
        while not has_ended():  # noqa: ASYNC110  # an event would cost each task and message, for the sake of few ends
            await anyio.sleep(LOOK_SEC)


async def _withdraw(parts: Parts, agent: Hosted) -> None:
    try:
        with anyio.move_on_after(RELEASE_SEC):
            await parts.network.withdraw_one(agent)
    except (StoreError, LeaseEnded) as error:
        log.warning("the descriptor of agent %.16s could not be withdrawn, it ends with the lease: %s", agent.id, error)
    except Exception:  # of a plugin's: the agent ends all the same
        log.exception("the descriptor of agent %.16s could not be withdrawn, which nothing expected", agent.id)

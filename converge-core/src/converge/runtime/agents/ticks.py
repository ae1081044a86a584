"""Ticks: one timer for all agents of a node that have a `tick_sec`; a waiting agent needs no task."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable
from functools import partial
from math import inf
from typing import Any

import anyio

from converge.env import Env
from converge.errors import ConvergeError
from converge.foreign import Raised, is_cancellation, tell
from converge.runtime.agents.agent import TICK_GREATEST_SEC, TICK_LEAST_SEC
from converge.runtime.agents.agent_log import agent_log
from converge.runtime.agents.boundary import Boundary, Worker, handler_of
from converge.runtime.agents.context import begin
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.supervision import Supervision


class Ticks:
    """The ticks of one node's agents. The first comes within one `tick_sec`, at random, so that they spread."""

    def __init__(self, env: Env, boundary: Boundary, supervision: Supervision) -> None:
        self._env, self._boundary, self._supervision = env, boundary, supervision
        self._due: list[tuple[float, int, Hosted, float]] = []
        self._number = 0
        self._is_stopped = False
        self._removed: set[str] = set()
        self._running: dict[str, anyio.CancelScope | None] = {}  # by agent; None: it has not begun
        self._ended = anyio.Event()
        self._changed = anyio.Event()

    def add(self, agents: Iterable[Hosted]) -> None:
        """Let the agents tick, those that have a `tick_sec`."""
        for one in agents:
            if (tick_sec := one.kind.tick_sec) is not None:
                self._schedule(one, self._env.uniform(0.0, tick_sec), tick_sec)

    def remove(self, agent: Hosted) -> None:
        """Stop ticks of the agent."""
        if agent.kind.tick_sec is not None:
            self._removed.add(agent.id)

    def is_running(self, agent: Hosted) -> bool:
        """Return whether a tick of the agent runs."""
        return agent.id in self._running

    def cancel(self, agent: Hosted | None = None) -> None:
        """Cancel the running ticks, or that of one agent."""
        for agent_id, scope in self._running.items():
            if scope is not None and (agent is None or agent.id == agent_id):
                scope.cancel()

    async def stop(self) -> None:
        """Stop all ticks; return when the running ones have ended."""
        self._is_stopped = True
        self._changed.set()
        while self._running:
            self._ended = anyio.Event()
            await self._ended.wait()

    async def run(self) -> None:
        """Begin ticks as they are due, until `stop`."""
        while not self._is_stopped:
            self._changed = anyio.Event()
            with anyio.move_on_after(self._due[0][0] - self._env.monotonic() if self._due else inf):
                await self._changed.wait()
            now = self._env.monotonic()
            while self._due and self._due[0][0] <= now and not self._is_stopped:
                _, _, agent, tick_sec = heapq.heappop(self._due)
                if agent.id in self._removed:
                    self._removed.discard(agent.id)
                    continue
                self._running[agent.id] = None
                self._boundary.start(partial(self._tick, agent, tick_sec))

    async def _tick(self, agent: Hosted, tick_sec: float, worker: Worker) -> bool:
        """Do one tick; the next is due only when this one is over, so that none overlaps another."""
        begin(agent)
        self._running[agent.id] = worker.scope
        is_due = not self._is_stopped and agent.id not in self._removed  # a stop may have come before the worker
        if is_due and agent.loop is not None:
            agent.loop.tick()
        rest_sec = 0.0
        if is_due and "on_tick" in agent.kind.own:
            handler = worker.awaitable(handler_of(agent, "on_tick"))
            outcome = await worker.call(lambda _: handler(), None)
            if type(outcome) is Raised:
                rest_sec = self._failed(agent, outcome)
            elif agent.health.is_troubled:
                self._supervision.succeeded(agent, "on_tick")
        del self._running[agent.id]
        self._ended.set()
        tick_sec = _seconds(agent.asked("tick_sec"), tick_sec)
        self._schedule(agent, max(rest_sec, tick_sec * self._env.uniform(0.9, 1.1)), tick_sec)
        return False

    def _failed(self, agent: Hosted, raised: Raised) -> float:
        """Return the seconds for which the agent gets no tick."""
        if raised.is_a(ConvergeError) or is_cancellation(raised.error):
            tell(agent_log(agent), logging.WARNING, "on_tick failed: %s", raised.text)
        else:
            tell(agent_log(agent), logging.ERROR, "on_tick failed", error=raised.error)
        return self._supervision.failed(agent, "on_tick", raised)

    def _schedule(self, agent: Hosted, after_sec: float, tick_sec: float) -> None:
        self._number += 1
        heapq.heappush(self._due, (self._env.monotonic() + after_sec, self._number, agent, tick_sec))
        if self._due[0][1] == self._number:
            self._changed.set()


def _seconds(value: Any, before: float) -> float:
    """Return the seconds if the agent, which may have changed them since, has some; else those of before."""
    kind = type(value)
    is_number = kind is int or kind is float  # a metaclass may raise where it is compared
    return float(value) if is_number and TICK_LEAST_SEC <= value <= TICK_GREATEST_SEC else before

"""Supervision: an agent's failures are counted and shown; it goes on after a rest, and after many in a row a circuit
breaker opens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import anyio
import attrs
from attrs import validators

from converge.env import Env
from converge.errors import InputError, InvalidValue

if TYPE_CHECKING:
    from converge.runtime.agents.agent import Agent

log = logging.getLogger("converge.supervision")

RESTS_FROM = 3
"""Failures in a row before the first rest: one bad task, or two, say nothing about the agent, and must not slow down
the good ones behind them.
"""

BACKOFF_LEAST_SEC, BACKOFF_GREATEST_SEC = 0.05, 2.0
"""Rests between failures while the breaker is closed: twice as long each time."""


NOT_ITS_FAULT = (InputError, InvalidValue)
"""What says that a task or a message is wrong, exactly these: other input errors, such as `NoSuchPool`, come of what
the handler did.
"""

_NOT_CONTAINED = (KeyboardInterrupt, GeneratorExit, BaseExceptionGroup)


def is_contained(error: BaseException) -> bool:
    """Tell whether a handler may raise it without ending more than itself.

    Neither `sys.exit` in one agent nor the panic of an extension module, which is no `Exception`, is a reason to end
    the process of all. A cancellation is not the handler's own, nor is a group that may hold one.
    """
    return isinstance(error, Exception) or not isinstance(error, (*_NOT_CONTAINED, anyio.get_cancelled_exc_class()))


@attrs.frozen(kw_only=True)
class Breaker:
    """When an agent's circuit breaker opens, and for how long.

    Attributes:
        failures: Failures in a row of one handler that open it.
        rest_sec: How long the handler gets nothing then, give or take a quarter; twice as long after each trial that
            fails.
        rest_greatest_sec: The longest rest.
    """

    failures: int = attrs.field(default=10, validator=validators.ge(1))
    rest_sec: float = attrs.field(default=5.0, validator=validators.gt(0))
    rest_greatest_sec: float = attrs.field(default=30.0, validator=validators.gt(0))


class CircuitState(StrEnum):
    """The states of a circuit breaker."""

    CLOSED = "closed"
    """The handler works, or has failed less often in a row than would open it."""
    OPEN = "open"
    """It has failed too often, and gets nothing for a while."""
    HALF_OPEN = "half-open"
    """Its rest is over: it gets one thing, on trial."""


class Circuit:
    """The failures of one handler of one agent. Pure: the time is an argument."""

    __slots__ = ("_breaker", "_opened", "failures", "in_a_row", "is_open", "last_error", "rests_until")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._opened = 0
        self.failures = self.in_a_row = 0
        self.is_open = False
        self.rests_until = float("-inf")
        self.last_error = ""

    def state(self, now: float) -> CircuitState:
        """Return the breaker's state."""
        if not self.is_open:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now < self.rests_until else CircuitState.HALF_OPEN

    def failed(self, error: str, now: float, jitter: float) -> float:
        """Count a failure; return the seconds for which the handler gets nothing. `jitter`: from 0 to 1."""
        self.failures += 1
        self.in_a_row += 1
        self.last_error = error
        if self.is_open and now < self.rests_until:
            return self.rests_until - now  # what was under way when the breaker opened is no trial
        if self.is_open or self.in_a_row >= self._breaker.failures:
            self.is_open = True
            rest_sec = min(self._breaker.rest_sec * 2**self._opened, self._breaker.rest_greatest_sec) * (
                0.75 + jitter / 2
            )
            self._opened = min(self._opened + 1, 30)
        elif self.in_a_row >= RESTS_FROM:
            rest_sec = min(BACKOFF_LEAST_SEC * 2 ** (self.in_a_row - RESTS_FROM), BACKOFF_GREATEST_SEC) * (
                0.5 + jitter / 2
            )
        else:
            return 0.0
        self.rests_until = max(self.rests_until, now + rest_sec)
        return self.rests_until - now

    def succeeded(self, now: float) -> bool:
        """Count a success; tell whether it closed the breaker. One of something begun before the breaker opened does
        not.
        """
        if self.is_open and now < self.rests_until:
            return False
        was_open, self.is_open = self.is_open, False
        self.in_a_row = self._opened = 0
        return was_open


class AgentHealth:
    """What is known of one agent's failures.

    Attributes:
        circuits: By handler (`on_task`, `on_message`, `on_tick`, `decide`); one that never failed has none.
        is_troubled: Whether any handler has failed since it last succeeded: the only thing that is looked at when all
            is well.
        died, died_at: Why the agent's own loop has ended, or empty, and when (monotonic seconds).
    """

    __slots__ = ("_env", "agent_id", "breaker", "circuits", "died", "died_at", "is_troubled")

    def __init__(self, agent_id: str, breaker: Breaker, env: Env) -> None:
        self.agent_id, self.breaker, self._env = agent_id, breaker, env
        self.circuits: dict[str, Circuit] = {}
        self.is_troubled = False
        self.died = ""
        self.died_at = 0.0

    @property
    def failures(self) -> int:
        """All failures so far."""
        return sum(circuit.failures for circuit in self.circuits.values())

    @property
    def failures_in_a_row(self) -> int:
        """Failures in a row of the handler that has most."""
        return max((circuit.in_a_row for circuit in self.circuits.values()), default=0)

    @property
    def last_error(self) -> str:
        """The last error of the handler that fails most, or empty."""
        return max(self.circuits.values(), key=lambda circuit: circuit.in_a_row).last_error if self.circuits else ""

    @property
    def state(self) -> CircuitState:
        """The breaker's state: of the handler that is worst off."""
        now = self._env.monotonic()
        states = {circuit.state(now) for circuit in self.circuits.values()}
        return next(
            (state for state in (CircuitState.OPEN, CircuitState.HALF_OPEN) if state in states), CircuitState.CLOSED
        )

    def rest_sec(self, handler: str) -> float:
        """Return the seconds for which the handler gets nothing yet."""
        circuit = self.circuits.get(handler)
        return 0.0 if circuit is None else max(0.0, circuit.rests_until - self._env.monotonic())


OnRest = Callable[["Agent", float, bool], None]
"""Called when an agent's slots are to take nothing for some seconds, and then, if True, one task on trial."""

TAKES_TASKS = ("on_task", "decide")
"""The handlers whose rest keeps the agent from claiming."""


class Supervision:
    """Counts the failures of a node's agents. `on_rest` and `on_closed` are told of those that claim tasks.

    `ended` is called when a handler ends whose slot was taken away while it ran, `retire` for an agent that is to claim
    nothing any more.
    """

    def __init__(
        self,
        env: Env,
        on_rest: OnRest,
        on_closed: Callable[[Agent], None],
        ended: Callable[[Agent], None],
        retire: Callable[[Agent], None],
    ) -> None:
        self._env, self._on_rest, self._on_closed, self.ended, self.retire = env, on_rest, on_closed, ended, retire
        self._agents: dict[str, AgentHealth] = {}
        self._dead: list[AgentHealth] = []

    def add(self, agent: Agent) -> None:
        """Begin to supervise an agent."""
        agent.health = AgentHealth(agent.id, agent.breaker, self._env)

    @property
    def agents(self) -> Mapping[str, AgentHealth]:
        """What is known of each agent that has ever failed, by id; of any agent it is in its `health`."""
        return self._agents

    @property
    def dead(self) -> Sequence[AgentHealth]:
        """The agents whose own loop has died: a node with one is not ready. From any thread."""
        return tuple(self._dead)

    @property
    def troubled(self) -> Sequence[AgentHealth]:
        """The agents of which a handler has failed since it last succeeded. From any thread."""
        return [health for health in list(self._agents.values()) if health.is_troubled]

    def failed(self, agent: Agent, handler: str, error: BaseException | str) -> float:
        """Count a failure of a handler; return the seconds for which it gets nothing.

        An `InvalidValue`, or inputs that do not fit, are the fault of what the handler was given: they are no failure
        of the agent.
        """
        if type(error) in NOT_ITS_FAULT and handler != "on_tick":
            return 0.0
        health = agent.health
        circuit = health.circuits.get(handler)
        if circuit is None:
            circuit = health.circuits[handler] = Circuit(health.breaker)
            self._agents[agent.id] = health
        health.is_troubled = True
        was_open = circuit.is_open
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        rest_sec = circuit.failed(text[:1_000], self._env.monotonic(), self._env.uniform())
        if circuit.is_open and not was_open:
            agent.log.error(
                "%s failed %d times in a row; the agent rests for %.1f s: %s",
                handler,
                circuit.in_a_row,
                rest_sec,
                circuit.last_error,
            )
        if rest_sec and handler in TAKES_TASKS:
            self._on_rest(agent, rest_sec, circuit.is_open)
        return rest_sec

    def succeeded(self, agent: Agent, handler: str) -> None:
        """Count a success. Callers look at `agent.health.is_troubled` first, so that it costs nothing while all is
        well.
        """
        health = agent.health
        circuit = health.circuits.get(handler)
        if circuit is not None and circuit.in_a_row and circuit.succeeded(self._env.monotonic()):
            agent.log.warning("%s works again", handler)
            if handler in TAKES_TASKS:
                self._on_closed(agent)
        health.is_troubled = any(circuit.in_a_row for circuit in health.circuits.values())

    def died(self, agent: Agent, error: BaseException) -> None:
        """An agent's own loop has ended with an error that nothing expected: it does nothing more, and the node is not
        ready.
        """
        agent.health.died, agent.health.died_at = f"{type(error).__name__}: {error}", self._env.monotonic()
        self._dead.append(agent.health)
        agent.log.error("the agent's loop died; it does nothing more until the node is started again", exc_info=error)

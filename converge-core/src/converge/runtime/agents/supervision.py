"""Supervision: an agent's failures are counted and shown; it goes on, and rests where its circuit breaker says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from converge.env import Env
from converge.foreign import Raised, guarded, tell
from converge.machines.attempt import is_of_its_data, word_of
from converge.machines.breaker import Circuit, CircuitState
from converge.runtime.agents.agent_health import AgentHealth
from converge.runtime.agents.agent_log import agent_log
from converge.runtime.agents.ailments import Ailment, Code
from converge.runtime.agents.hosted import Hosted

log = logging.getLogger("converge.supervision")


OnRest = Callable[[Hosted, float, bool], None]
"""Called when an agent's slots are to take nothing for some seconds, and then, if True, one task on trial."""

TAKES_TASKS = ("on_task", "decide")
"""The handlers whose rest keeps the agent from claiming."""


class Supervision:
    """Counts the failures of a node's agents. `on_rest` and `on_closed` are told of those that claim tasks.

    `ended` is called when a handler ends whose slot was taken away while it ran.
    """

    def __init__(
        self, env: Env, on_rest: OnRest, on_closed: Callable[[Hosted], None], ended: Callable[[Hosted], None]
    ) -> None:
        self._env, self._on_rest, self._on_closed, self.ended = env, on_rest, on_closed, ended
        self._agents: dict[str, AgentHealth] = {}

    @property
    def agents(self) -> Mapping[str, AgentHealth]:
        """What is known of each agent here that has ever failed, by id; of any agent it is in its `health`."""
        return self._agents

    def forget(self, agent: Hosted) -> None:
        """Show nothing more of an agent that has ended."""
        self._agents.pop(agent.id, None)

    @property
    def troubled(self) -> Sequence[AgentHealth]:
        """The agents of which a handler has failed since it last succeeded. From any thread."""
        return [health for health in list(self._agents.values()) if health.is_troubled]

    def rests(self) -> Iterable[Ailment]:
        """Return which handlers rest, or are on trial after a rest; may be called from any thread."""
        now = self._env.monotonic()
        for health in self.troubled:
            for handler, circuit in list(health.circuits.items()):
                if (state := circuit.state(now)) is not CircuitState.CLOSED:
                    what = (
                        f"rests for {circuit.rests_until - now:.0f} s" if state is CircuitState.OPEN else "is on trial"
                    )
                    text = f"agent {health.agent_id}: {handler} {what}: {circuit.last_error}"
                    yield Ailment(Code.AGENT_RESTS, text, circuit.opened_at)

    def failed(self, agent: Hosted, handler: str, error: Raised | str) -> float:
        """Count a failure of a handler; return the seconds for which it gets nothing.

        An `InvalidValue`, or inputs that do not fit, are the fault of what the handler was given, and an `AttemptEnd`
        is the agent's own word: they do not count as failures of the agent. A text tells of a timeout.
        """
        if not isinstance(error, str) and _is_no_failure(error.error, handler):
            return 0.0
        health = agent.health
        circuit = health.circuits.get(handler)
        if circuit is None:
            circuit = health.circuits[handler] = Circuit(health.breaker)
            self._agents[agent.id] = health
        health.is_troubled = True
        was_open = circuit.is_open
        text = error if isinstance(error, str) else error.text
        rest_sec = circuit.failed(
            text[:1_000],
            self._env.monotonic(),
            self._env.uniform(),
            # of a subclass it may be user code
            is_ill=guarded(health.breaker.is_on, TimeoutError() if isinstance(error, str) else error.error) is True,
        )
        if circuit.is_open and not was_open:
            tell(
                agent_log(agent),
                logging.ERROR,
                "%s failed %d times in a row; the agent rests for %.1f s: %s",
                handler,
                circuit.ill_in_a_row,
                rest_sec,
                circuit.last_error,
            )
        if rest_sec and handler in TAKES_TASKS:
            self._on_rest(agent, rest_sec, circuit.is_open)
        return rest_sec

    def succeeded(self, agent: Hosted, handler: str) -> None:
        """Count a success. Callers look at `agent.health.is_troubled` first, so that it costs nothing as a rule."""
        health = agent.health
        circuit = health.circuits.get(handler)
        if circuit is not None and circuit.in_a_row and circuit.succeeded(self._env.monotonic()):
            tell(agent_log(agent), logging.WARNING, "%s works again", handler)
            if handler in TAKES_TASKS:
                self._on_closed(agent)
        health.is_troubled = any(circuit.in_a_row for circuit in health.circuits.values())


def _is_no_failure(error: BaseException, handler: str) -> bool:
    return handler != "on_tick" and (is_of_its_data(error) or word_of(error) is not None)

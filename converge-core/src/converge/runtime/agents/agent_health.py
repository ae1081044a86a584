"""What is known of one agent's failures."""

from __future__ import annotations

from converge.env import Env
from converge.machines.breaker import Breaker, Circuit, CircuitState


class AgentHealth:
    """What is known of one agent's failures.

    Attributes:
        circuits: By handler (`on_task`, `on_message`, `on_tick`, `decide`); one that never failed has none.
        is_troubled: Whether any handler has failed since it last succeeded: the only thing that is looked at when all
            is well.
    """

    __slots__ = ("_env", "agent_id", "breaker", "circuits", "is_troubled")

    def __init__(self, agent_id: str, breaker: Breaker, env: Env) -> None:
        self.agent_id, self.breaker, self._env = agent_id, breaker, env
        self.circuits: dict[str, Circuit] = {}
        self.is_troubled = False

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

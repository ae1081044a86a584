"""An agent's own log: each line names the agent."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from converge.foreign import name_of


class AgentLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the agent's id to the caller's `extra`; the library's own adapter would replace that."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Return the line's text and arguments."""
        return msg, {**kwargs, "extra": {**(self.extra or {}), **(kwargs.get("extra") or {})}}


def agent_log(agent: object) -> AgentLog:
    """Return an agent's log; made when it is asked for, since 10,000 idle agents write nothing."""
    agent_id = getattr(agent, "id", "")  # none yet in `__init__`
    return AgentLog(
        logging.getLogger(f"converge.agent.{name_of(type(agent))}"), {"agent": agent_id} if agent_id else {}
    )

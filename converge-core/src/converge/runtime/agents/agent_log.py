"""An agent's own log: each line names the agent."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from converge.runtime.agents.hosted import Hosted


class AgentLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the agent's id to the caller's `extra`; the library's own adapter would replace that."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Return the line's text and arguments."""
        return msg, {**kwargs, "extra": {**(self.extra or {}), **(kwargs.get("extra") or {})}}


def agent_log(agent: Hosted) -> AgentLog:
    """Return an agent's log; made when it is asked for, since 10,000 idle agents write nothing."""
    return log_of(agent.kind.name, agent.id)


def log_of(class_name: str, agent_id: str) -> AgentLog:
    """Return the log of an agent, or of one that has no id yet."""
    return AgentLog(logging.getLogger(f"converge.agent.{class_name}"), {"agent": agent_id} if agent_id else {})

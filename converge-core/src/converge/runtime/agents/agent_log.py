"""An agent's own log: each line names the agent."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any


class AgentLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the agent's id to what the caller gives as `extra`; the library's own adapter would put it in place of
    that.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Return the line's text and arguments."""
        return msg, {**kwargs, "extra": {**(self.extra or {}), **(kwargs.get("extra") or {})}}


def agent_log(class_name: str, agent_id: str) -> AgentLog:
    """Return an agent's log; made when it is asked for, since 10,000 idle agents write nothing."""
    return AgentLog(logging.getLogger(f"converge.agent.{class_name}"), {"agent": agent_id} if agent_id else {})

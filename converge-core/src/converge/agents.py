"""What agents are written with, besides `converge.Agent`: decisions and their outcomes, tools, limits, breakers."""

from __future__ import annotations

from converge.machines.breaker import Breaker, CircuitState
from converge.model.working import Child
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.agent_health import AgentHealth
from converge.runtime.agents.decisions import (
    AnswerMessage,
    AskAgent,
    BroadcastMessage,
    CreatePool,
    Decision,
    InvokeTool,
    JoinPool,
    LeavePool,
    Limits,
    Outcome,
    PublishMessage,
    ReportTask,
    SendMessage,
    SubmitTask,
    Tool,
)
from converge.services.durable.agents import AgentRef, AgentRefs
from converge.services.durable.output import Output

__all__ = [
    "Agent",
    "AgentHealth",
    "AgentRef",
    "AgentRefs",
    "AnswerMessage",
    "AskAgent",
    "Breaker",
    "BroadcastMessage",
    "Child",
    "CircuitState",
    "CreatePool",
    "Decision",
    "InvokeTool",
    "JoinPool",
    "LeavePool",
    "Limits",
    "Outcome",
    "Output",
    "PublishMessage",
    "ReportTask",
    "SendMessage",
    "SubmitTask",
    "Tool",
]

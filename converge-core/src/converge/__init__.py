"""Networks of agents: shared tasks, pools, discovery and messages.

The names of `__all__` are what users write against. Each is imported at its first use: `converge --help` needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converge.builtin.file import FileStore
    from converge.builtin.memory import MemoryStore
    from converge.errors import ConvergeError
    from converge.machines.task import TaskState
    from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
    from converge.model.identity import Identity
    from converge.model.message import Capability, Message, Receipt, Topic
    from converge.model.pool import Pool
    from converge.model.task import Task
    from converge.runtime.agents.agent import Agent
    from converge.runtime.node import Node
    from converge.services.discovery.registry import IdentityRegistry
    from converge.services.discovery.service import DiscoveryService
    from converge.services.durable.manager import TaskManager
    from converge.services.pools import PoolManager
    from converge.services.store.opening import open_store

__all__ = [
    "Agent", "AgentDescriptor", "Capability", "ConvergeError", "DiscoveryQuery", "DiscoveryService", "FileStore",
    "Identity", "IdentityRegistry",
    "MemoryStore", "Message", "Node", "Pool", "PoolManager", "Receipt", "Task", "TaskManager", "TaskState", "Topic",
    "open_store",
]  # fmt: skip

_HOMES = {
    "Agent": "runtime.agents.agent",
    "AgentDescriptor": "model.descriptor",
    "Capability": "model.message",
    "ConvergeError": "errors",
    "DiscoveryQuery": "model.descriptor",
    "DiscoveryService": "services.discovery.service",
    "FileStore": "builtin.file",
    "Identity": "model.identity",
    "IdentityRegistry": "services.discovery.registry",
    "MemoryStore": "builtin.memory",
    "Message": "model.message",
    "Node": "runtime.node",
    "Pool": "model.pool",
    "PoolManager": "services.pools",
    "Receipt": "model.message",
    "Task": "model.task",
    "TaskManager": "services.durable.manager",
    "TaskState": "machines.task",
    "Topic": "model.message",
    "open_store": "services.store.opening",
}


if not TYPE_CHECKING:  # a type checker must not take any name for granted

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'converge' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"converge.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The conformance kit, for authors of stores, transports and discoveries; needs the extra `converge-core[testing]`.

Each class is loaded when it is first asked for: a plugin of pytest that is imported from here must not import pytest's
other plugins early.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converge.testing._check.bench import Bench, ServerBench
    from converge.testing._transport.streams import StreamTransportContract
    from converge.testing.checked import CheckedStore
    from converge.testing.discovery import DiscoveryContract
    from converge.testing.faults import FaultPlan, FaultyStore
    from converge.testing.store import StoreContract
    from converge.testing.task import TaskContract
    from converge.testing.transport import TransportContract

__all__ = [
    "Bench",
    "CheckedStore",
    "DiscoveryContract",
    "FaultPlan",
    "FaultyStore",
    "ServerBench",
    "StoreContract",
    "StreamTransportContract",
    "TaskContract",
    "TransportContract",
]

_HOMES = {
    "Bench": "converge.testing._check.bench",
    "CheckedStore": "converge.testing.checked",
    "DiscoveryContract": "converge.testing.discovery",
    "FaultPlan": "converge.testing.faults",
    "FaultyStore": "converge.testing.faults",
    "ServerBench": "converge.testing._check.bench",
    "StoreContract": "converge.testing.store",
    "StreamTransportContract": "converge.testing._transport.streams",
    "TaskContract": "converge.testing.task",
    "TransportContract": "converge.testing.transport",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

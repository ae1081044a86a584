"""Every hook of Converge, nothing else. Hooks are plain functions: they do no I/O and are never awaited.

`converge_<plural>` declares; `converge_<noun>_<event>` observes, or guards where it returns something. Guards are
called in load order; the first refusal (an exception) wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from converge.contracts.commands import Command
from converge.contracts.decisions import DecisionKind
from converge.contracts.discovery import DiscoveryBackend
from converge.contracts.store import StoreBackend
from converge.contracts.transport import TransportBackend

if TYPE_CHECKING:
    from converge.model.message import Message
    from converge.model.task import Task

PROJECT = "converge"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def converge_stores() -> Iterable[StoreBackend]:  # type: ignore[empty-body]  # a specification has no body, here and below
    """Declare store backends. Called once, after the plugin was named."""


@hookspec
def converge_transports() -> Iterable[TransportBackend]:  # type: ignore[empty-body]
    """Declare transport backends. Called once, after the plugin was named."""


@hookspec
def converge_discoveries() -> Iterable[DiscoveryBackend]:  # type: ignore[empty-body]
    """Declare discovery backends. Called once, after the plugin was named."""


@hookspec
def converge_decisions() -> Iterable[DecisionKind]:  # type: ignore[empty-body]
    """Declare decisions that agents may take beside core's, each with the handler that carries it out. Called once,
    after the plugin was named.
    """


@hookspec
def converge_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Declare commands of `converge`. They exist only where the plugin is named by `--plugin` or `plugins`. Called
    once, after the plugin was named.
    """


@hookspec
def converge_node_started(node_id: str) -> None:
    """A node is up: its store is open and, if it has a transport, it listens."""


@hookspec
def converge_node_stopping(node_id: str) -> None:
    """A node begins to stop: it claims nothing more."""


@hookspec
def converge_task_claimed(task: Task) -> None:
    """An agent of this node begins an attempt."""


@hookspec
def converge_task_finished(task: Task, outcome: str) -> None:
    """An attempt has ended here and the store knows: `outcome` is completed, failed or released."""


@hookspec
def converge_message_before_send(message: Message) -> Message | None:
    """Guard a message before it leaves: return a changed one, or None to let it pass; raise to refuse it."""


@hookspec
def converge_message_received(message: Message) -> Message | None:
    """Guard a message before its handler: return a changed one, or None to let it pass; raise to refuse it."""

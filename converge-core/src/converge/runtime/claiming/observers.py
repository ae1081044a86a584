"""Plugins that observe attempts, as the feeds call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, ParamSpec

from msgspec.structs import astuple

from converge.machines.events import Completed, Event, Failed, Released
from converge.model.place import Found
from converge.model.task import Task
from converge.plugins import PluginHost
from converge.runtime.claiming.slots import OnClaimed
from converge.services.tasks.records import to_task

P = ParamSpec("P")


class Observers(NamedTuple):
    """Called when an attempt begins, when one has ended and the store knows, and when one has ended of which the store
    takes nothing: its task was cancelled, or the lease was lost. None: nobody, which costs nothing.
    """

    claimed: OnClaimed | None = None
    finished: Callable[[Found, Event], None] | None = None
    dropped: Callable[[Found], None] | None = None


NO_OBSERVERS = Observers()


def observers_of(host: PluginHost, others: Observers = NO_OBSERVERS) -> Observers:
    """Return what calls the plugins, and `others` before them; a task is made for them only where there are any."""

    def finished(found: Found, event: Event) -> None:
        # By nobody: it goes back, and no attempt had begun.
        if isinstance(event, Completed | Failed | Released) and event.by:
            task = to_task(*astuple(found), by=event.by)
            host.observe("converge_task_finished", task=task, outcome=type(event).__name__.lower())

    def claimed(found: Found, task: Task) -> None:
        host.observe("converge_task_claimed", task=task)

    return Observers(
        _both(others.claimed, claimed if host.has("converge_task_claimed") else None),
        _both(others.finished, finished if host.has("converge_task_finished") else None),
        others.dropped,
    )


def _both(first: Callable[P, None] | None, second: Callable[P, None] | None) -> Callable[P, None] | None:
    if first is None or second is None:
        return first or second

    def both(*arguments: P.args, **named: P.kwargs) -> None:
        first(*arguments, **named)
        second(*arguments, **named)

    return both

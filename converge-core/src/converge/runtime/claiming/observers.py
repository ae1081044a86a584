"""Plugins that observe attempts, as the feeds call them."""

from __future__ import annotations

from converge.machines.task import Completed, Event, Failed, Found, Released
from converge.plugins import PluginHost
from converge.runtime.claiming.feed import Observers
from converge.services.tasks.records import to_task


def observers_of(host: PluginHost) -> Observers:
    """Return what calls the plugins; a task is made for them only where there are any."""

    def finished(found: Found, event: Event) -> None:
        if (
            isinstance(event, Completed | Failed | Released) and event.by
        ):  # by nobody: it goes back, and no attempt had begun
            task = to_task(*found, by=event.by)
            host.observe("converge_task_finished", task=task, outcome=type(event).__name__.lower())

    return Observers(
        (lambda task: host.observe("converge_task_claimed", task=task)) if host.has("converge_task_claimed") else None,
        finished if host.has("converge_task_finished") else None,
    )

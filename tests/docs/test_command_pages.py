"""The reference pages of the command and its configuration name everything that there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import attrs
import cyclopts
import pytest

from converge.cli import (
    _app,
    agents,
    completion,
    config,
    doctor,
    identity,
    pools,
    run,
    store,
    submit,
)
from converge.cli.options import Common
from converge.cli.plugins import new as new_plugin
from converge.cli.plugins import show as plugins
from converge.cli.submit import TaskFlags
from converge.cli.tasks import list as list_module
from converge.cli.tasks import purge as purge_module
from converge.cli.tasks import verbs as tasks
from converge.cli.tasks import waiting
from converge.operations.task_file import FIELDS
from converge.runtime.config.config import KEYS
from converge.runtime.config.fields import Retention

PAGES = Path(__file__).parents[2] / "docs/reference"


def test_every_key_has_a_row() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*)$", (PAGES / "config.md").read_text(), re.MULTILINE))
    keys = {*KEYS, *(f"retention.{field.name}" for field in attrs.fields(Retention)), "options.NAME"} - {
        "retention",
        "options",
    }
    assert set(rows) == keys


COMMANDS = [
    *(
        run.run,
        submit.submit,
        list_module.list_tasks,
        purge_module.purge,
        tasks.show,
        tasks.explain,
        tasks.cancel,
        tasks.retry,
        waiting.signal,
        waiting.watch,
        waiting.complete,
        waiting.fail,
        plugins.list_plugins,
    ),
    *(pools.create, pools.list_pools, pools.show, pools.allow, pools.pause, pools.resume),
    *(agents.list_agents, agents.show, agents.ping, agents.ps, identity.new, identity.show),
    *(
        plugins.show,
        new_plugin.new,
        plugins.check,
        config.show,
        config.check,
        config.schema,
        store.info,
        store.migrate,
        store.accept,
        store.copy,
        doctor.doctor,
        completion.completion,
    ),
]


def commands(app: cyclopts.App, *above: str) -> set[str]:
    """The words of every command that does something."""
    own = [name for name in app if not name.startswith("-")]
    below = [commands(app[name], *above, name) for name in own]
    # What is imported when it is used has flags of its own, and no command below it.
    return set().union(*below) if own else {" ".join(above)}


def test_every_command_has_a_row_and_every_row_a_command() -> None:
    rows = re.findall(r"^\| `converge ([a-z ]+?)[ A-Z.\[\]]*` \|", (PAGES / "cli.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(commands(_app()))
    assert len(COMMANDS) == len(rows), "the flags of each are tested"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_on_the_page(command: object) -> None:
    assert callable(command)
    page = (PAGES / "cli.md").read_text()
    flags = [
        name
        for name, one in inspect.signature(command).parameters.items()
        if one.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    if "common" in flags:
        flags = [name for name in flags if name != "common"] + [field.name for field in attrs.fields(Common)]
    if "task" in flags:
        flags = [name for name in flags if name != "task"] + [field.name for field in attrs.fields(TaskFlags)]
    assert [name for name in flags if f"`--{name.replace('_', '-')}" not in page] == []


def test_every_field_of_a_line_is_on_the_page() -> None:
    page = (PAGES / "cli.md").read_text()
    assert [field for field in FIELDS if f"`{field}`" not in page] == []

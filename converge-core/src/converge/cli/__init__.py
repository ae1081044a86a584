"""The command `converge`: a module for each command, imported when it is used."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import cyclopts

from converge.cli.failures import CONFIGURATION, NUMBER, USAGE, failed
from converge.cli.streams import complete, results_apart
from converge.cli.wording import remember

if TYPE_CHECKING:
    from converge.contracts.commands import Command

COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("run", "run:run", "Run agents until their pool is drained, or until SIGTERM or SIGINT."),
    ("submit", "submit:submit", "Submit tasks, from flags or from a file of JSON lines."),
    ("ps", "agents:ps", "List the processes that work on a store."),
    ("tasks", "", "Inspect, cancel, retry and remove tasks."),
    (
        "tasks list",
        "tasks.list:list_tasks",
        "List tasks by state, pool, type, topic and age; --dead-letters for those that failed for good.",
    ),
    ("tasks show", "tasks.verbs:show", "Show one task with its history."),
    ("tasks explain", "tasks.verbs:explain", "Explain why a task is, or is not, claimed."),
    ("tasks cancel", "tasks.verbs:cancel", "Cancel tasks that have not ended."),
    ("tasks signal", "tasks.waiting:signal", "Send a task a signal that it waits for now or later."),
    ("tasks watch", "tasks.waiting:watch", "Follow a task's output until it has ended."),
    ("tasks complete", "tasks.waiting:complete", "Complete a task that waits."),
    ("tasks fail", "tasks.waiting:fail", "Fail a task that waits."),
    ("tasks retry", "tasks.verbs:retry", "Submit a copy of each task that failed or was cancelled."),
    ("tasks purge", "tasks.purge:purge", "Remove ended tasks before their retention has passed."),
    ("pools", "", "Create, inspect, pause and resume pools."),
    ("pools create", "pools:create", "Create a pool; one that exists is left as it is."),
    ("pools list", "pools:list_pools", "List pools with their task counts."),
    ("pools show", "pools:show", "Show one pool: its settings, task counts and members."),
    ("pools allow", "pools:allow", "Put agents on a pool's allow-list, or take them off it."),
    ("pools pause", "pools:pause", "Stop claims from pools until they are resumed."),
    ("pools resume", "pools:resume", "Resume claims from pools."),
    ("agents", "", "Inspect the agents of live processes."),
    ("agents list", "agents:list_agents", "List agents by topic, capability and pool."),
    ("agents show", "agents:show", "Show one agent's descriptor."),
    ("agents ping", "agents:ping", "Send an agent's node a message; say how long it takes, or why it does not arrive."),
    ("identity", "", "Create and inspect keys that are kept between starts."),
    ("identity new", "identity:new", "Create a key, or rotate one."),
    ("identity show", "identity:show", "Show kept keys: type, id, file, never the key."),
    ("plugins", "", "Inspect plugins."),
    ("plugins list", "plugins.show:list_plugins", "List installed plugins; none of them is imported."),
    ("plugins show", "plugins.show:show", "Show one plugin: its file, hooks, backends, options."),
    ("plugins new", "plugins.new:new", "Write a new plugin: a package that works, to be changed."),
    ("plugins check", "plugins.show:check", "Check a plugin by the whole conformance kit; write its report card."),
    ("store", "", "Inspect, migrate and copy a store; accept one restored from a backup."),
    ("store info", "store:info", "Show a store: its settings, epoch, clock, contents and users."),
    ("store migrate", "store:migrate", "Add to a store what this release needs; --dry-run shows it."),
    ("store accept", "store:accept", "Accept a store that was flushed, restored or replaced."),
    ("store copy", "store:copy", "Copy a network from one store to another that is empty."),
    ("doctor", "doctor:doctor", "Check configuration, plugins, keys and store; say what is wrong and how to fix it."),
    ("config", "", "Show and check the configuration."),
    ("config show", "config:show", "Show the effective configuration, and where each value comes from."),
    ("config check", "config:check", "List everything that is wrong with a configuration file."),
    ("config schema", "config:schema", "Write the JSON Schema of the configuration file."),
    ("completion", "completion:completion", "Write the script that completes commands in bash, zsh or fish."),
)
"""Each command: its words, its module and function (none: a group), its line of `--help`, shown without an import."""


def _app(called: str = "", of_plugins: Sequence[Command] = ()) -> cyclopts.App:
    """Return the command; `called` is the one that is about to run: its help is its docstring, whole, not the line that
    lists it. `of_plugins` are the commands that named plugins add.
    """
    app = cyclopts.App(
        name="converge",
        help="Networks of agents: run them, give them work, inspect what they do.",
        version=_version,
        # our help has no markup, and a parser for some would be a fifth of the time that --help takes
        help_format="plaintext",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=cyclopts.Parameter(show_default=_shown_default),
    )
    groups = {"": app}
    for words, target, help_ in COMMANDS:
        group, _, name = words.rpartition(" ")
        if target:
            line = {} if words == called else {"help": help_}
            groups[group].command(f"converge.cli.{target}", name=name, **line)
        else:
            groups[words] = cyclopts.App(name=words, help=help_)
            app.command(groups[words])
    for command in of_plugins:
        group, _, name = command.name.rpartition(" ")
        if group not in groups:
            groups[group] = cyclopts.App(name=group, help="Commands of a plugin.")
            app.command(groups[group])
        groups[group].command(command.run, name=name, **({} if command.name == called else {"help": command.help}))
    return app


def _of_plugins(given: list[str]) -> tuple[Sequence[Command], list[str]]:
    """Return the commands of the plugins that are named by flags, file or environment, and the arguments for the one
    that is called. Nothing is loaded for a command of core's, nor where no plugin is named.
    """
    own = {words.partition(" ")[0] for words, _, _ in COMMANDS}
    rest, flags, named, file = list[str](), list[str](), list[str](), None
    arguments = iter(given)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag not in ("--plugin", "--config", "-c"):
            rest.append(argument)
            continue
        value = value if equals else next(arguments, "")
        flags += [flag, value]
        if flag == "--plugin":
            named.append(value)
        else:
            file = value
    if (rest and rest[0] in own) or not (named or file or "CONVERGE_PLUGINS" in os.environ):
        return (), given
    from converge.cli.options import Common, import_here
    from converge.plugins import PluginHost
    from converge.runtime.config.config import read

    plugins = read(file, flags={"plugins": tuple(named) or None})[0].plugins
    import_here(plugins)
    commands = PluginHost(plugins).commands
    called = next((one for one in commands if rest[: len(one.name.split())] == one.name.split()), None)
    defaults = inspect.signature(called.run).parameters.values() if called else ()
    takes_flags = any(isinstance(parameter.default, Common) for parameter in defaults)
    return commands, [*rest, *flags] if takes_flags else rest


TEXTS = frozenset((
    "--advertise", "--after", "--allow", "--capability", "--deadline", "--dedup-key", "--discovery", "--health",
    "--id", "--identity-dir", "--input", "--key", "--network", "--not-before", "--older-than", "--only",
    "--ordering-key", "--other-python", "--parent", "--payload", "--plugin", "--pool", "--result", "--since",
    "--store", "--topic", "--transport", "--type", "--why",
))  # fmt: skip
"""Flags whose value may be a lone `-` that means itself, not standard input."""


def _given(arguments: Sequence[str]) -> list[str]:
    """Return the arguments for the library, which takes a lone `-` for an option; we read `./-` as standard input.

    Raises:
        InputError: It stands for an argument that is no file.
    """
    given = list[str]()
    for argument in arguments:
        if argument != "-" or "--" in given:
            given.append(argument)
        elif given and given[-1] in TEXTS:
            given[-1] += "=-"
        elif given and given[0] in ("tasks", "pools", "agents", "identity"):
            from converge.errors import InputError

            raise InputError('"-": is no flag; where it is meant as it is, write -- and it at the end of the line')
        else:
            given.append("./-")
    return given


def _called(given: Sequence[str], of_plugins: Sequence[Command] = ()) -> str:
    """Return the words of the command that is called; empty: none, or an unknown one."""
    known = {words for words, target, _ in COMMANDS if target} | {command.name for command in of_plugins}
    return next((words for words in (" ".join(given[:2]), " ".join(given[:1])) if words in known), "")


def _has_results(called: str, given: Sequence[str]) -> bool:
    """Return whether standard output is for results alone: not for help, nor for a plugin's own command; and `run`
    shows what handlers print, unless its results are for a program.
    """
    is_own = any(words == called for words, target, _ in COMMANDS if target)
    return is_own and {"--help", "-h"}.isdisjoint(given) and (called != "run" or "--json" in given)


def _shown_default(value: object) -> str | None:
    """Return a default as `--help` shows it; switches that are off and unset flags are omitted."""
    return None if value is None or value is False else str(value)


def _version() -> str:
    from importlib.metadata import version

    return version("converge-core")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    complete()
    is_supervised = NUMBER in os.environ
    code = _code_of(arguments)
    if is_supervised and code in (USAGE, CONFIGURATION):
        from converge.operations.processes import REFUSED

        code = REFUSED
    if arguments is None and threading.active_count() > 1:
        from converge.operations.signals import leave_past_threads

        leave_past_threads(code)
    return code


def _code_of(arguments: Sequence[str] | None) -> int:
    remember(())
    try:
        given = _given(sys.argv[1:] if arguments is None else arguments)
        of_plugins, given = _of_plugins(given)
        called = _called(given, of_plugins)
        if of_plugins:
            from converge.cli.plugins.commands import check_code, check_parameters

            check_parameters(of_plugins)
        app = _app(called, of_plugins)
        with results_apart() if _has_results(called, given) else nullcontext():
            code = app(given, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        if any(one.name == called for one in of_plugins):
            check_code(called, code)
        return code if isinstance(code, int) else 0
    except SystemExit:
        raise
    except BaseException as error:  # the process's boundary: whatever it was becomes a message and an exit code
        return failed(error)

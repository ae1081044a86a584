"""Commands that plugins add: what is wrong with their parameters, and with what they return."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import cyclopts

from converge.contracts.commands import Command
from converge.errors import PluginBroken
from converge.foreign import Raised, guarded


def mistakes_of(commands: Sequence[Command]) -> Iterator[str]:
    """Yield what is wrong with the parameters of commands, a line each."""
    for command in commands:
        if type(asked := guarded(_parameters, command)) is Raised:
            yield (
                f'the plugin\'s command "{command.name}" has parameters that no command line can give: {asked.text}; '
                "annotate them with types that Python finds, such as str, int, float, bool, Path or a list of these"
            )


def _parameters(command: Command) -> cyclopts.ArgumentCollection:
    app = cyclopts.App()
    app.default(command.run)
    return app.assemble_argument_collection()


def check_parameters(commands: Sequence[Command]) -> None:
    """Refuse commands that cannot be called.

    Raises:
        PluginBroken: What is wrong with them.
    """
    if found := list(mistakes_of(commands)):
        raise PluginBroken("\n".join(found))


def check_code(command: str, code: object) -> None:
    """Refuse what a plugin's command returned, unless it is an exit code: a failure must not pass for success.

    Raises:
        PluginBroken: It is neither a whole number from 0 to 255 nor None.
    """
    if code is not None and not (isinstance(code, int) and 0 <= code <= 255):
        if inspect.iscoroutine(code):
            code.close()
        kind = type(code).__name__
        raise PluginBroken(
            f'the plugin\'s command "{command}" returned {kind}, expected an exit code, 0 to 255, or None'
        )

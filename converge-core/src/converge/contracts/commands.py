"""What a plugin gives to add a command to `converge`: its words, and the function that it calls."""

from __future__ import annotations

from collections.abc import Callable

import attrs

CORE_COMMANDS = (
    *("run", "submit", "ps", "tasks", "pools", "agents", "identity", "plugins", "store", "doctor", "config"),
    "completion",
)
"""The first words of core's own commands, which no plugin may take."""


@attrs.frozen(kw_only=True)
class Command:
    """One command, as a plugin declares it.

    Attributes:
        name: What users type behind `converge`: one word, or two for a command of a group (`report`, `report costs`);
            lower case, a-z first, then a-z 0-9 -. The first word is none of core's.
        run: A plain function. Its parameters are the command's arguments and flags, by their annotations: what stands
            before a `/` is taken by place, the rest by name. It returns the exit code, or None for 0; a
            `ConvergeError` becomes a message and its exit code. One with the parameter `common: Common = NONE` of
            `converge.cli.options` takes the flags that core's commands share.
        help: The line that `converge --help` shows; a command's own help is the docstring of `run`.
    """

    name: str
    run: Callable[..., int | None]
    help: str

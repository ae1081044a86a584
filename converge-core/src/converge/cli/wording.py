"""What a command tells people: foreign text escaped for a terminal, and commands to go on with as they can be run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

from converge.cli.streams import drop
from converge.secret import without_password

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and newline; and what turns the direction of text around."""


def harmless(value: str) -> str:
    """Return the text with its control characters spelt out: an agent's answer must not steer the reader's terminal."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], value)


_OF_A_STORE = re.compile(
    r"(?<![\w-])converge (?:(?:tasks|pools|agents) [a-z]+|store (?:info|migrate|accept)|ps|doctor|submit|run)"
    r"(?= |`|,|;|$)"
)
"""Commands that take the flags of a store; one without its own words is one to read, not to run."""

_flags = ""


def remember(flags: Sequence[str]) -> None:
    """Set the flags of a store that this command was given: those that it names need them, too. A password is left out,
    also of a URL that is about to be refused for having one.
    """
    global _flags  # of the process, as its command line is
    _flags = shlex.join(map(without_password, flags))


def runnable(text: str) -> str:
    """Return the text, each command of ours in it with the flags of the store that this one was given."""
    return _OF_A_STORE.sub(lambda found: f"{found[0]} {_flags}", text) if _flags and "converge " in text else text


def tell(text: str) -> None:
    """Write a line for people to standard error: nothing in it acts on a terminal, and its commands can be run. One
    that cannot be written changes nothing, least of all the exit code.
    """
    try:
        print(harmless(runnable(text)), file=sys.stderr)  # noqa: T201  # the one place from which commands talk to people
    except OSError:  # a full disk, or whoever read it has gone
        drop(sys.stderr)

"""Whose an unforeseen error is: a plugin's, if it was raised in its code, whatever of Converge's called that."""

from __future__ import annotations

import traceback
from typing import Any

from converge.plugins.found import CORE, Found, title

_PACKAGES: dict[str, Found] = {}
"""Plugins that this process has loaded, by the package that they are in; Converge's own is not among them."""


class BrokenContract(TypeError):
    """A backend answered in another shape than its contract says, or cannot be called as it says.

    It is as unforeseen as what a plugin raises itself: none of Converge's errors, so nothing waits and tries again.
    """

    def __init__(self, found: Found, text: str) -> None:
        super().__init__(text)
        self.found = found


def note_loaded(found: Found) -> None:
    """Note whose code is now in this process."""
    if found.distribution != CORE:
        _PACKAGES[_package(found.target.partition(":")[0])] = found


def owner_of(error: BaseException) -> Found | None:
    """Return the plugin whose call failed: of the plugins and Converge itself, whose code is the innermost one.

    Libraries and users' code do not count, so what a driver raises is the plugin's that called it. A backend's
    `open`, through which the errors of its block pass, is not the innermost one then.
    """
    if isinstance(error, BrokenContract):
        return error.found
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = _package(str(frame.f_globals.get("__name__", "")))
        if package == "converge":
            return None
        if package in _PACKAGES:
            return _PACKAGES[package]
    return None


def suspects() -> str:
    """Return what to look at where Converge failed and plugins were in use, as a clause; empty if there were none."""
    if not _PACKAGES:
        return ""
    titles = " and ".join(sorted({title(found) for found in _PACKAGES.values()}))
    commands = ", ".join(sorted(set(map(check_command, _PACKAGES.values()))))
    return f"; it was used with {titles}: {commands} tells whether the contract is kept"


def check_command(found: Found) -> str:
    """Return the command that checks the plugin, in backticks."""
    return f"`converge plugins check {found.name if found.distribution else found.target}`"


def _package(module: Any) -> str:
    return str(module).partition(".")[0]

"""`converge completion`: the shell completes commands, flags and their choices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE
from converge.errors import InputError

Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[Shell, ...] = ("bash", "zsh", "fish")


def completion(
    shell: Annotated[
        Shell | None, Parameter(help="The shell; by default the one that the variable SHELL names.")
    ] = None,
    /,
    *,
    install: Annotated[
        bool,
        Parameter(
            negative=(), help="Install the script where the shell looks for it, and load it in the shell's start file."
        ),
    ] = False,
) -> int:
    """Write the shell's completion script for commands, flags and their choices.

    For this session: source <(converge completion bash). For all: converge completion --install.
    """
    from converge.cli import _app

    chosen = shell or _own_shell()
    app = _app()
    if install:
        output.write(f"{app.install_completion(shell=chosen)} was written; new shells load it")
    else:
        output.write(app.generate_completion(prog_name="converge", shell=chosen).rstrip())
    return DONE


def _own_shell() -> Shell:
    name = Path(os.environ.get("SHELL", "")).name
    for known in SHELLS:
        if name == known:
            return known
    raise InputError(f"SHELL is {name or 'not set'}: name one of {', '.join(SHELLS)}")

"""`converge completion`: what a shell is given, and what bash makes of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converge.cli import COMMANDS

Converge = Callable[..., Any]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_names_every_command_and_its_flags(converge: Converge, shell: str) -> None:
    answer = converge("completion", shell)
    assert (answer.code, answer.err) == (0, "")
    assert [words for words, _, _ in COMMANDS if words.rpartition(" ")[2] not in answer.out] == []
    for text in ("converge", "older-than", "dead-letters", "completed"):
        assert text in answer.out


def test_bash_completes_commands_flags_and_choices(converge: Converge, folder: Path) -> None:
    (folder / "completion.bash").write_text(converge("completion", "bash").out)
    for typed, completed in (
        ("converge tasks pu", "purge"),
        ("converge do", "doctor"),
        ("converge tasks list --dead", "--dead-letters"),
        ("converge tasks list --state f", "failed"),
    ):
        set_up = f"source completion.bash; COMP_WORDS=({typed}); COMP_CWORD={len(typed.split()) - 1}"
        script = f"{set_up}; _converge; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [completed], typed


def test_it_is_installed_for_the_shell_that_is_used(
    converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    answer = converge("completion", "--install")
    assert (answer.code, answer.err) == (0, "")
    path = Path(answer.out.partition(" was written")[0])
    assert path.is_relative_to(folder) and "doctor" in path.read_text()


@pytest.mark.parametrize(("shell", "said"), [("/bin/tcsh", "SHELL is tcsh"), ("", "SHELL is not set")])
def test_a_shell_that_is_not_known_is_told_with_those_that_are(
    converge: Converge, monkeypatch: pytest.MonkeyPatch, shell: str, said: str
) -> None:
    monkeypatch.setenv("SHELL", shell)
    answer = converge("completion")
    assert (answer.code, answer.out) == (2, "")
    assert f"{said}: name one of bash, zsh, fish" in answer.err

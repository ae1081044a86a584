"""A system without POSIX file locks is told in one line what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

# As on Windows: there is no such module.
WITHOUT = "import sys; sys.modules['fcntl'] = None\n"


@pytest.mark.parametrize("module", ["converge.builtin.file", "converge.runtime.keys.folder", "converge"])
def test_what_needs_file_locks_says_at_import_that_windows_needs_wsl(module: str) -> None:
    code = f"{WITHOUT}import {module}"
    if module == "converge":
        code += "\nfrom converge import FileStore"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    *_, last = done.stderr.strip().splitlines()
    assert (done.returncode, last.startswith("converge.errors.Unsupported:"), "WSL" in last) == (1, True, True), last


def test_the_command_says_it_in_one_line() -> None:
    code = f"{WITHOUT}from converge.cli import main; sys.exit(main(['store', 'info', '--store', 'file:state.db']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n"), "WSL" in done.stderr) == (3, 1, True), done.stderr

"""A Python that has imported Converge once and runs each script in a child of its own: importing it takes longer than
most scripts of the documentation.

Run as a program it reads one JSON object a line: `file`, `name` (what `__name__` is), `folder`, `environment`, `log`.
It answers with the child's process id, then with its exit code.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

IMPORTS = "import anyio, uvloop; from converge import Agent, Node, Pool, Task; import converge.testing"


class Warm:
    """The process that has imported; one script at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, file: str, name: str, folder: Path, environment: Mapping[str, str], log: Path) -> int:
        """Start a script in a session of its own; return its process id."""
        asked = {"file": file, "name": name, "folder": str(folder), "environment": dict(environment), "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """Return the exit code of the script that was started."""
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def warm_python(environment: Mapping[str, str]) -> Iterator[Warm]:
    """Run it until the block is left; a warning is an error, as in the scripts."""
    command = [sys.executable, "-W", "error", __file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Warm(process)


def _run(asked: dict[str, Any]) -> NoReturn:
    """Become the script; does not return."""
    os.setsid()
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    os.closerange(3, max(log, nothing) + 1)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv, sys.path[0] = [asked["file"]], asked["folder"]
    runpy.run_path(asked["file"], run_name=asked["name"])
    sys.exit(0)


def main() -> None:
    """Fork for each line; end with the input."""
    exec(IMPORTS)  # noqa: S102 - they are for the children
    # In binary and without a buffer: a child would have what is in it, too.
    while line := _line():
        pid = os.fork()
        if not pid:
            _run(json.loads(line))
        os.write(1, f"{pid}\n".encode())
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


def _line() -> bytes:
    found = b""
    while not found.endswith(b"\n") and (some := os.read(0, 65_536)):
        found += some
    return found


if __name__ == "__main__":
    main()

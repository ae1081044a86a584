"""Python processes that start in a tenth of the time: forks of one that has imported Converge already.

Tests start hundreds of processes, to kill and stop them, and each would spend a third of a second on imports. What
`start` returns is a `subprocess.Popen` with a process of its own behind it: its id, streams, folder, environment and
exit code. With FULL_TESTS=1, until there is one to fork, and where a process is told more than that, it starts as any
process does: nobody waits for imports within an event loop.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converge.testing.servers import SERVER_MARK

IS_COLD = os.environ.get("FULL_TESTS") == "1"
COMMAND = str(Path(sys.executable).with_name("converge"))
NUMBER = struct.Struct("i")
UNDERSTOOD = {"cwd", "env", "stdin", "stdout", "stderr", "text"}

_parents: list[tuple[subprocess.Popen[bytes], socket.socket]] = []
"""The process that is forked, once it was started."""
_ready: list[socket.socket] = []
"""Where it listens, once it has imported."""
_one_at_a_time = threading.Lock()


def start(command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
    """Start a process, as `subprocess.Popen` does."""
    words = [str(word) for word in command]
    is_python = words[0] == sys.executable
    is_plain = words[0] == COMMAND or (is_python and (words[1] in ("-m", "-c", "-P") or words[1][0] != "-"))
    environment = options.get("env") or os.environ
    is_alike = _read_at_start(environment) == _read_at_start(os.environ) and _is_known(environment)
    if IS_COLD or not is_plain or not is_alike or set(options) - UNDERSTOOD:
        return subprocess.Popen(words, **options)
    with _one_at_a_time:
        is_ready = _is_ready()
    if not is_ready:
        return subprocess.Popen(words, **options)
    return _Forked(words, **options)


def run(
    command: Sequence[str | Path], *, timeout: float, check: bool = False, capture_output: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a process to its end, as `subprocess.run` does."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter reads only when it starts, but for where it looks for modules."""
    names = (name for name in environment if name.startswith(("PYTHON", "LD_", "LC_", "LANG")))
    return {name: environment[name] for name in names if name != "PYTHONPATH"}


def _is_known(environment: Mapping[str, str]) -> bool:
    """Whether modules are looked for in no other folders than here: others may have another release, or a
    `sitecustomize`.
    """
    return set(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))) <= set(sys.path)


def _is_ready() -> bool:
    if not _parents:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = Path(__file__).with_name("preloading.py")
        process = subprocess.Popen(
            [sys.executable, str(program), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, SERVER_MARK: "1"},
        )
        theirs.close()
        _parents.append((process, ours))
    ((_, ours),) = _parents
    if not _ready and select.select([ours], [], [], 0)[0] and ours.recv(5):
        _ready.append(ours)
    return bool(_ready)


def stop() -> None:
    """End what was started for others, at the end of the tests. Those others go on."""
    while _parents:
        process, ours = _parents.pop()
        _ready.clear()
        ours.shutdown(socket.SHUT_RDWR)  # whoever has been forked from this process with it
        ours.close()
        process.wait()


class _Forked(subprocess.Popen[Any]):
    """A grandchild, of whose end its parent tells by a pipe: its id when it starts, its status when it has ended."""

    def _execute_child(  # type: ignore[no-untyped-def]  # not in the types: what differs between ways to start one
        self, args, executable, before, close, keep, cwd, env, info, flags, shell,
        stdin, to_stdin, from_stdout, stdout, from_stderr, stderr, *rest,
    ) -> None:  # fmt: skip
        self._told, telling = os.pipe()
        streams = [at if given == -1 else given for at, given in enumerate((stdin, stdout, stderr))]
        asked = {"words": args, "cwd": str(cwd or os.getcwd()), "environment": dict(os.environ if env is None else env)}
        try:
            socket.send_fds(_ready[0], [json.dumps(asked).encode()], [*streams, telling])
        finally:
            os.close(telling)
        (self.pid,) = NUMBER.unpack(os.read(self._told, NUMBER.size))
        self._child_created = True
        self._close_pipe_fds(stdin, to_stdin, from_stdout, stdout, from_stderr, stderr)  # type: ignore[attr-defined]

    def _try_wait(self, flags: int) -> tuple[int, int]:
        """As `os.waitpid`, of a process that is no child of this one."""
        if flags & os.WNOHANG and not select.select([self._told], [], [], 0)[0]:
            return 0, 0
        (status,) = NUMBER.unpack(os.read(self._told, NUMBER.size))
        os.close(self._told)
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        lock = self._waitpid_lock  # type: ignore[attr-defined]
        if lock.acquire(blocking=False):
            try:
                if self.returncode is None and (status := self._try_wait(os.WNOHANG))[0]:
                    self._handle_exitstatus(status[1])  # type: ignore[attr-defined]
            finally:
                lock.release()
        return self.returncode

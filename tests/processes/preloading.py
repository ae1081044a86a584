"""The process that is forked by `preloaded`: it imports, and does nothing that a fork would have to undo."""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import struct
import sys
from types import ModuleType

NUMBER = struct.Struct("i")
MOST = 200_000
"""Bytes of a request."""
PACKAGES = (
    *("converge.cli", "converge.operations", "converge.runtime", "converge.services", "converge.builtin"),
    *("converge_store_redis", "converge_store_sql", "converge_transport_tcp", "converge_transport_ws", "uvloop"),
)


def preload() -> None:
    """Import what processes of tests use."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if name.startswith("converge"):
                importlib.import_module(module.name)
    importlib.import_module("converge.testing._processes.peer")
    gc.collect()
    gc.freeze()


def serve(connection: socket.socket) -> list[str]:
    """Fork a child for each request, and tell how each ended; return its command in the child."""
    children: dict[int, tuple[int, int]] = {}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        for ready in select.select([connection.fileno(), *children], [], [])[0]:
            if ready in children:
                pid, telling = children.pop(ready)
                os.close(ready)
                tell(telling, os.waitpid(pid, 0)[1])
                os.close(telling)
                continue
            request, descriptors, *_ = socket.recv_fds(connection, MOST, 4)
            if not request:
                sys.exit()
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                connection.detach()
                return become(request, descriptors)
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            children[os.pidfd_open(pid)] = pid, descriptors[3]
            tell(descriptors[3], pid)


def tell(descriptor: int, number: int) -> None:
    """Write a number, whether or not anybody reads it."""
    try:
        os.write(descriptor, NUMBER.pack(number))
    except BrokenPipeError:
        return


def become(request: bytes, descriptors: list[int]) -> list[str]:
    """Take what a process has of its own; return its command."""
    for standard, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, standard)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    asked = json.loads(request)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    words: list[str] = asked["words"]
    return words


def execute(words: list[str]) -> None:
    """Do what the interpreter would with these words."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [one for one in path if one and one not in sys.path]
    if words[0] != sys.executable:
        sys.argv, sys.path[0], code = words, os.path.dirname(words[0]), CONVERGE
    elif words[1] == "-c":
        sys.argv, sys.path[0], code = ["-c", *words[3:]], "", words[2]
    elif words[1] == "-m":
        sys.argv, sys.path[0], code = words[2:], os.getcwd(), MODULE
    elif words[1:3] == ["-P", "-m"]:
        sys.argv, sys.path[:1], code = words[3:], [], MODULE
    else:
        sys.argv, sys.path[0] = words[1:], os.path.dirname(os.path.abspath(words[1]))
        main.__file__ = words[1]
        with open(words[1]) as file:
            code = file.read()
    exec(compile(code, getattr(main, "__file__", "<string>"), "exec", dont_inherit=True), main.__dict__)  # noqa: S102  # the test's


CONVERGE = "import sys; from converge.cli import main; sys.exit(main())"
MODULE = "import runpy, sys; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"

if __name__ == "__main__":
    preload()
    listening = socket.socket(fileno=int(sys.argv[1]))
    try:
        listening.send(b"ready")
        command = serve(listening)
    except ConnectionError:  # the tests have ended meanwhile
        sys.exit()
    execute(command)

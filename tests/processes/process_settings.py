"""What is one for a whole process, and what a test that changes it gives to all tests that run after it."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)


def settings_of_process() -> dict[str, Any]:
    """Return what there is of it, by a name for people; of variables, whose texts may be secret, a hash."""
    root, ours = logging.getLogger(), logging.getLogger("converge")
    return {
        "the levels of loggers": (root.level, ours.level, root.manager.disable),
        "the handlers of logs": [one for one in (*root.handlers, *ours.handlers) if not _is_of_pytest(one)],
        "the collection of garbage": (gc.isenabled(), gc.get_threshold()),  # to count what is frozen takes long
        "the working directory": os.getcwd(),
        "where modules are looked for": list(sys.path),
        "the handlers of signals": [signal.getsignal(number) for number in SIGNALS],
        "what Python calls for errors": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "the limits of the interpreter": (sys.getrecursionlimit(), sys.getswitchinterval()),
        "the folder of temporary files": tempfile.tempdir,
        "the timeout of sockets": socket.getdefaulttimeout(),
        **{f"the variable {name}": hash(text) for name, text in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
    }


def changed_since(before: dict[str, Any]) -> list[str]:
    """Return of each setting that is another now a line for people."""
    after = settings_of_process()
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name)!r} became {after.get(name)!r}" for name in names]


def _is_of_pytest(handler: logging.Handler) -> bool:
    return type(handler).__module__.startswith("_pytest.")

"""Starting, stopping and hearing the processes of `peer.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import attrs
import pytest

from converge.contracts.discovery import DiscoveryBackend
from converge.contracts.store import Feature, StoreBackend
from converge.testing._processes.peer import Name, Order
from converge.testing._store.base import StoreCase
from converge.testing.clauses import expect

PROCESSES = 3
READY_SEC, END_SEC = 60.0, 60.0
"""How long a process may take to start an interpreter and open the store, and to end after its time."""


class Peer:
    """One process; what it says is read as it comes, so that it never waits for its reader.

    Attributes:
        popen: How a process is started, for all: a suite that starts hundreds may know a quicker way.
    """

    popen: ClassVar[Callable[..., subprocess.Popen[str]]] = subprocess.Popen

    def __init__(self, order: Order, python: str = sys.executable) -> None:
        is_ours = python == sys.executable  # another one finds another release where it stands
        ours = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment = os.environ | (ours if is_ours else {})
        self._process = type(self).popen(
            [python, "-P", "-m", "converge.testing._processes.peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.said: list[list[Any]] = []
        self._heard = threading.Condition()
        self._errors = ""
        self._threads = [threading.Thread(target=listen) for listen in (self._listen, self._listen_to_errors)]
        for thread in self._threads:
            thread.start()
        self.tell(json.dumps(attrs.asdict(order), default=str))

    def tell(self, line: str) -> None:
        """Write a line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("]\n"):
                continue  # it was killed within a line, which was acknowledged, but not told
            with self._heard:
                self.said.append(json.loads(line))
                self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()

    def _listen_to_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors = self._process.stderr.read()

    def wait_for(self, enough: Callable[[list[list[Any]]], bool], seconds: float) -> bool:
        """Return whether it says enough within so many seconds; it may end before."""
        with self._heard:
            self._heard.wait_for(lambda: enough(self.said) or self._process.poll() is not None, seconds)
            return enough(self.said)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()

    def end(self, seconds: float) -> str:
        """Wait for its end; return the end of what it wrote to standard error if it failed by itself."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = None
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        if code is None:
            return f"it did not end within {seconds:g} s"
        return "" if code in (0, -9) else self._errors.strip()[-1_500:]


@contextmanager
def running(order: Order, how_many: int, python: str = sys.executable) -> Iterator[list[Peer]]:
    """Run so many processes, all of which have opened the store; they work once they are told to. None is left."""
    peers: list[Peer] = []
    try:
        for _ in range(how_many):
            peers.append(Peer(order, python))
        yield peers
    finally:
        for peer in peers:
            peer.kill()
            peer.end(END_SEC)


def begin(peers: list[Peer], *, ahead_sec: float = 0.0) -> None:
    """Wait until all have opened the store, then let them work.

    Args:
        peers: All of them.
        ahead_sec: How long at most the others wait until the first has told of something: however slow it is, they do
            not leave it without work. At 0 all begin together.
    """
    for peer in peers:
        is_ready = peer.wait_for(bool, READY_SEC)
        expect("S-14", is_ready, "a process could not open the store: " + ("" if is_ready else peer.end(END_SEC)))
    for peer in peers:
        peer.tell("go")
        if peer is peers[0] and ahead_sec:
            peer.wait_for(lambda said: len(said) > 1, ahead_sec)


def end(peers: list[Peer], *, kill: bool = True) -> str:
    """End all, or wait for their end; return how the first of them failed."""
    if kill:
        for peer in peers:
            peer.kill()
    return next((said for peer in peers if (said := peer.end(END_SEC))), "")


def peers_on(
    case: StoreCase, url: str, options: Any, work: str, limit_sec: float
) -> AbstractContextManager[list[Peer]]:
    """Run processes on the place of a test: several if the store is SHARED, one if it is only PERSISTENT."""
    features = case.backend.features
    if not features & {Feature.SHARED, Feature.PERSISTENT}:
        pytest.skip("not applicable: the store declares neither SHARED nor PERSISTENT")
    order = order_of(case.backend, options, url, work, limit_sec, inherited=case.inherited_turn)
    return running(order, PROCESSES if Feature.SHARED in features else 1)


def order_of(
    backend: StoreBackend | DiscoveryBackend, options: Any, url: str, work: str, limit_sec: float, *, inherited: bool
) -> Order:
    """Return what tells another process to open the same backend; skips the test if none could import what opens it."""
    return Order(
        work=work,
        open=name_of(backend.open, "open"),
        options=name_of(type(options), "options"),
        values={field.name: getattr(options, field.name) for field in attrs.fields(type(options)) if field.init},
        url=url,
        limit_sec=limit_sec,
        inherited=inherited,
    )


def name_of(what: Any, called: str) -> Name:
    """Return by which name another process imports it; skips the test if none could."""
    owner = getattr(what, "__self__", what)
    attribute = owner.__qualname__ if owner is what else f"{owner.__qualname__}.{what.__name__}"
    if "<" in attribute:
        pytest.skip(f"not tried with several processes: {called} is {attribute}, which no other process can import")
    file = sys.modules[owner.__module__].__file__
    return Name(module=owner.__module__, file=str(file), attribute=attribute)

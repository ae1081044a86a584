"""What a forked child must not use of what it inherits: each owner of such a thing says how the child lays it down.

A child shares its parent's locks, connections and sockets, and has none of its threads. What it inherits stays
referenced, so that no destructor of it runs in the child, where it would act on what the parent still uses.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from converge.errors import ForkedHandle

HOLD_SEC = 2.0
"""How long a fork waits for each lock of `hold`, which is one step of somebody else's work."""

LOCK = threading.RLock()
"""Held during a fork: whoever opens or closes what a child must find whole, or not at all, does it under this."""

_Owner = TypeVar("_Owner")
_Kept = tuple["weakref.ref[Any]", Any]

_owners: dict[int, _Kept] = {}
_locks: dict[int, _Kept] = {}
_held: list[threading.RLock] = []
_masks: list[set[int]] = []
_inherited: list[object] = []
_is_registered = False


def watch(owner: _Owner, lay_down: Callable[[_Owner], None]) -> None:
    """Call `lay_down(owner)` in each child that is forked while the owner is there. It must not block, log or raise."""
    _register()
    _keep(_owners, owner, lay_down)


def hold(owner: object, lock: threading.RLock) -> None:
    """Let a fork wait for the lock, at most `HOLD_SEC`, so that no child meets half of what its holder does."""
    _register()
    _keep(_locks, owner, lock)


def refuse(owner: object, *methods: str) -> None:
    """Let each of these async methods raise `ForkedHandle` from now on, whatever the owner's class."""
    for name in methods:
        setattr(owner, name, _refuse)


async def _refuse(*_: object, **__: object) -> NoReturn:
    raise ForkedHandle


def _keep(kept: dict[int, _Kept], owner: object, what: object) -> None:
    key = id(owner)
    kept[key] = (weakref.ref(owner, lambda _: kept.pop(key, None)), what)


def _register() -> None:
    global _is_registered
    with LOCK:
        if not _is_registered:
            os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
            _is_registered = True


def _before() -> None:
    LOCK.acquire()
    for _, lock in list(_locks.values()):
        if lock.acquire(timeout=HOLD_SEC):
            _held.append(lock)
    # A signal that reached the child before it laid down its parent's handlers would be heard by the parent, and lost
    # to the child. The mask is kept first: either call may raise KeyboardInterrupt.
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _after() -> None:
    while _held:
        _held.pop().release()
    masks = [_masks.pop()] if _masks else []  # no longer ours to look at once another thread may fork
    LOCK.release()
    for mask in masks:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    errors: list[BaseException] = []
    for reference, lay_down in list(_owners.values()):
        if (owner := reference()) is not None:
            _inherited.append(owner)
            try:
                lay_down(owner)
            except BaseException as error:  # the others are to be laid down all the same
                errors.append(error)
    _owners.clear()
    _locks.clear()
    _after()
    if errors:
        raise errors[0]  # which Python shows, and goes on

"""The keys of one process: fresh, or kept in `identity_dir`, one for each agent type and index, locked while in use.

The file `sequence` holds the highest sequence number that may have been used with any of them: numbers are reserved in
blocks before the first of a block is used, so that a process that dies never leads to one being used twice. A block
serves all keys of a process: of one key numbers must rise.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from converge.codec import FIRST, decode, encode
from converge.env import Env
from converge.errors import BadSignature, InvalidKey, InvalidName, KeyFileRefused, KeyInUse, SchemaTooNew, TornRecord
from converge.model.identity import Identity
from converge.runtime.keys.folder import KeyFolder, locked
from converge.threads import in_own_thread

BLOCK = 1_000
"""Sequence numbers that are reserved at a time."""

KEYS = 100_000
"""Kept keys of one kind at most: as many agents as one process may have."""

TIME_GREATEST = 2**53
"""Store times past this (the year 2255) are wrong, and no reason to jump ahead: a used number cannot be taken back."""

WRITERS = 16
"""Keys that are written at a time: file systems settle what waits together in one go."""

NODE, SEQUENCE = "node", "sequence"
_NAME = re.compile(r"(node|agent\.[A-Za-z_][A-Za-z0-9_]{0,99})\.(0|[1-9]\d{0,5})")
_TYPE = "ed25519"


@attrs.frozen(kw_only=True)
class _Record:
    """What a key file says."""

    type: str
    id: str
    seed: str
    succession: tuple[str, ...] = ()
    v: int = FIRST


@attrs.frozen(kw_only=True)
class KeyShown:
    """The public data of a kept key. `is_used`: a live process has it."""

    name: str
    type: str
    id: str
    path: Path
    rotations: int
    is_used: bool


class LockedKey:
    """A key of `identity_dir`, locked for this process until it is closed."""

    def __init__(self, name: str, lock: int, identity: Identity, blocks: _Blocks) -> None:
        self.name, self.identity = name, identity
        self._lock, self._blocks = lock, blocks
        self._last = self._reserved = 0

    def close(self) -> None:
        """Release the key for other processes."""
        os.close(self._lock)

    @property
    def is_reserved(self) -> bool:
        """Whether the next number is reserved, so that it costs no write."""
        return self._last < max(self._reserved, self._blocks.end)

    def next(self, now: int) -> int:
        """Return a number above all that were ever used with this key. See `_Blocks.reserve`."""
        if self._last >= self._reserved:
            if self._last >= self._blocks.end:
                self._blocks.reserve(now)
            self._last, self._reserved = self._blocks.end - BLOCK, self._blocks.end
        self._last += 1
        return self._last


class _Blocks:
    """Reserves sequence numbers for all keys of a process."""

    def __init__(self, folder: KeyFolder) -> None:
        self._folder = folder
        self.end = 0
        """The last number of the latest block; 0: none is reserved yet."""

    def reserve(self, now: int) -> None:
        """Reserve a block above all before, and above `now` (microseconds): the folder may come from a backup.

        Raises:
            KeyFileRefused: It could not be written.
        """
        with locked(self._folder, SEQUENCE):
            used = max(
                self.end,
                _number(self._folder.path / SEQUENCE, self._folder.read(SEQUENCE)),
                now if now <= TIME_GREATEST else 0,
            )
            self._folder.write(SEQUENCE, str(used + BLOCK).encode())
        self.end = used + BLOCK


class Keyring:
    """Identities for a node and its agents, with their descriptors' sequence numbers; fresh ones without a folder.

    Its calls block on the disk where there is a folder: a node makes them in a thread.
    """

    def __init__(self, env: Env, folder: KeyFolder | None = None) -> None:
        self._env, self._folder = env, folder
        self._blocks = _Blocks(folder) if folder is not None else None
        self._kept: dict[str, LockedKey] = {}
        self._last: dict[str, int] = {}
        self._index: dict[str, int] = {}

    @classmethod
    def open(cls, identity_dir: str | Path, env: Env) -> Keyring:
        """Return the keyring of that folder, made if it is not there; of none if it is empty text.

        Raises:
            KeyFileRefused: Another user can read or change it.
        """
        return cls(env, KeyFolder.open(Path(identity_dir)) if identity_dir else None)

    @property
    def folder(self) -> KeyFolder | None:
        """Where keys are kept, if they are."""
        return self._folder

    def close(self) -> None:
        """Release the keys for other processes."""
        for kept in self._kept.values():
            kept.close()
        self._kept = {}
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def acquire(self, kind: str, count: int = 1) -> list[Identity]:
        """Return identities of this kind, `node` or an agent's class name, that no other process uses: those with the
        lowest index that are free.

        Raises:
            KeyFileRefused: A file cannot be relied on; what was taken by this call is free again.
        """
        if self._folder is None or self._blocks is None:
            return [Identity.generate(self._env.entropy) for _ in range(count)]
        kind, locks = kind if kind == NODE else f"agent.{_plain(kind)}", dict[str, int]()
        try:
            for _ in range(count):
                self._lock(self._folder, kind, locks)
            identities = _read_or_make(self._folder, list(locks), self._env)
        except BaseException:
            self._index.pop(kind, None)
            for lock in locks.values():
                os.close(lock)
            raise
        for (name, lock), identity in zip(locks.items(), identities, strict=True):
            self._kept[identity.id] = LockedKey(name, lock, identity, self._blocks)
        return identities

    def give_back(self, agent_ids: Iterable[str]) -> None:
        """Release these keys for other processes, if they are kept, and forget their agents, which have ended."""
        for agent_id in agent_ids:
            self._last.pop(agent_id, None)
            kept = self._kept.pop(agent_id, None)
            if kept is not None:
                kept.close()
                self._index.pop(kept.name.rpartition(".")[0], None)

    async def sequences(self, agent_ids: Sequence[str], now: int) -> list[int]:
        """Return for each a number for its next descriptor, above all before; `now` is store time in microseconds.

        Raises:
            KeyFileRefused: One could not be reserved.
        """
        if any((kept := self._kept.get(agent_id)) is not None and not kept.is_reserved for agent_id in agent_ids):
            return await in_own_thread(lambda: [self._sequence(agent_id, now) for agent_id in agent_ids])
        return [self._sequence(agent_id, now) for agent_id in agent_ids]

    def _sequence(self, agent_id: str, now: int) -> int:
        kept = self._kept.get(agent_id)
        number = kept.next(now) if kept is not None else max(now, self._last.get(agent_id, 0) + 1)
        self._last[agent_id] = number
        return number

    def _lock(self, folder: KeyFolder, kind: str, locks: dict[str, int]) -> None:
        """Lock the next name of the kind that is free."""
        for index in range(self._index.get(kind, 0), KEYS):
            name = _checked(f"{kind}.{index}")
            lock = folder.lock(name)
            if lock is not None:
                self._index[kind], locks[name] = index + 1, lock
                return
        raise KeyInUse(
            folder.path / kind,
            f"all {KEYS} keys of this kind are used by live processes",
            "name another identity_dir",
        )


# What `converge identity` does.


def new_key(folder: KeyFolder, kind: str, env: Env) -> KeyShown:
    """Create a key of the kind, with the lowest index that has none.

    Raises:
        KeyFileRefused: It cannot be written.
        InvalidName: The kind is neither `node` nor an agent's class name.
    """
    for index in range(KEYS):
        name = _checked(f"{kind if kind == NODE else f'agent.{kind}'}.{index}")
        lock = folder.lock(name)
        if lock is None:
            continue
        try:
            if folder.read(f"{name}.key") is None:
                _make(folder, name, env)
                break
        finally:
            os.close(lock)
    return show_key(folder, name)


def rotate_key(folder: KeyFolder, name: str, env: Env) -> KeyShown:
    """Put a new key in the place of that name's, signed by the old one as its successor; the old one is gone then.

    Raises:
        KeyInUse: A process that lives uses it.
        KeyFileRefused: There is none, or it cannot be read or written.
    """
    if f"{_checked(name)}.key" not in folder.names():  # before a lock is made for a typo
        raise KeyFileRefused(
            folder.path / f"{name}.key", "there is no such key", "`converge identity show` lists the existing ones"
        )
    lock = folder.lock(name)
    if lock is None:
        raise KeyInUse(folder.path / f"{name}.key", "a process that lives uses it", "stop that process first")
    try:
        old = read_key(folder, name)
        if old is None:
            raise KeyFileRefused(
                folder.path / f"{name}.key",
                "it was removed just now",
                "`converge identity show` lists the existing ones",
            )
        seed = env.entropy(32)
        _write(folder, name, seed, old.succeeded_by(seed))
    finally:
        os.close(lock)
    return show_key(folder, name)


def show_keys(folder: KeyFolder) -> Iterator[KeyShown]:
    """Return the public data of each key."""
    for file in folder.names():
        if file.endswith(".key") and _NAME.fullmatch(file[:-4]):
            yield show_key(folder, file[:-4])


def show_key(folder: KeyFolder, name: str) -> KeyShown:
    """Return the public data of the key.

    Raises:
        KeyFileRefused: There is none, or it cannot be relied on.
    """
    identity, path = read_key(folder, _checked(name)), folder.path / f"{name}.key"
    if identity is None:
        raise KeyFileRefused(path, "there is no such key", "`converge identity show` lists the existing ones")
    lock = folder.lock(name)
    if lock is not None:
        os.close(lock)
    return KeyShown(
        name=name, type=_TYPE, id=identity.id, path=path, rotations=len(identity.succession), is_used=lock is None
    )


def read_key(folder: KeyFolder, name: str) -> Identity | None:
    """Return the identity of that name, None if there is none.

    Raises:
        KeyFileRefused: The file cannot be relied on, or holds no key.
    """
    data, path = folder.read(f"{name}.key"), folder.path / f"{name}.key"
    if data is None:
        return None
    try:
        record = decode(data, _Record, "key")
        identity = Identity(base64.b64decode(record.seed, validate=True), record.succession)
        if record.type != _TYPE or record.id != identity.id:
            raise ValueError("its type is not known, or its id is not the key's")
    except (TornRecord, SchemaTooNew, InvalidKey, BadSignature, ValueError):
        # The cause is neither shown nor kept: it may quote the file.
        raise KeyFileRefused(
            path, "it holds no key that this release can read", "restore it from a copy, or remove it for a new key"
        ) from None
    return identity


def _read_or_make(folder: KeyFolder, names: Sequence[str], env: Env) -> list[Identity]:
    """Return the keys of these names, locked; missing ones are made, many at a time: each waits for the disk."""
    found = {name: read_key(folder, name) for name in names}
    missing = [name for name, identity in found.items() if identity is None]
    with ThreadPoolExecutor(WRITERS) as pool:
        made = dict(zip(missing, pool.map(lambda name: _make(folder, name, env, is_last=False), missing), strict=True))
    if made:
        folder.sync()
    return [found[name] or made[name] for name in names]


def _make(folder: KeyFolder, name: str, env: Env, *, is_last: bool = True) -> Identity:
    seed = env.entropy(32)
    identity = Identity(seed)
    _write(folder, name, seed, identity, is_last=is_last)
    return identity


def _write(folder: KeyFolder, name: str, seed: bytes, identity: Identity, *, is_last: bool = True) -> None:
    record = _Record(type=_TYPE, id=identity.id, seed=base64.b64encode(seed).decode(), succession=identity.succession)
    folder.write(f"{name}.key", encode(record), is_last=is_last)


def _plain(name: str) -> str:
    """Return a class's name as a file can have it; two that become one share its keys."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)[:100]


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidName("key", name, "node.INDEX or agent.CLASS.INDEX")
    return name


def _number(path: Path, data: bytes | None) -> int:
    text = (data or b"0").decode("ascii", "replace")
    if not re.fullmatch(r"\d{1,19}", text):
        raise KeyFileRefused(path, "it holds no number", "remove it: numbers then go on above store time")
    return int(text)

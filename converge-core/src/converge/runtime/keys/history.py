"""The history of a store, as `identity_dir` remembers it: a process refuses another one, or an older state (G15).

For each store there is a file with the epoch that was seen last and the greatest revision: a flushed or replaced store
has another epoch, one that was restored from a backup gives revisions again that were given before.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import attrs

from converge.codec import FIRST, decode, encode
from converge.errors import ConvergeError, KeyFileRefused, StoreRolledBack
from converge.runtime.keys.folder import KeyFolder, locked
from converge.secret import without_password


@attrs.frozen(kw_only=True)
class _Record:
    """What is remembered of a store. `store` is for people; `seen_at` is the store time at which it was seen last."""

    store: str
    epoch: str
    revision: int
    seen_at: int = 0
    v: int = FIRST


@attrs.frozen(kw_only=True)
class Accepted:
    """What `accept` has done: the epoch that counts from now on, and the one before, empty if none was known."""

    epoch: str
    before: str


class History:
    """What one folder remembers of one store. Its calls block on the disk: a node makes them in a thread."""

    def __init__(self, folder: KeyFolder, url: str, network: str) -> None:
        """`url`: the store's as it was given; a relative path means the same store as the absolute one."""
        self._folder, self._shown = folder, f"{without_password(_absolute(url))}, network {network}"
        self._name = f"store.{hashlib.sha256(self._shown.encode()).hexdigest()[:16]}"

    def floor(self, epoch: str, accepted_at: int = 0) -> int:
        """Return the greatest revision that was seen of this store: what it gives must be above.

        `accepted_at`: the store time at which an operator has accepted it; what was remembered before does not count.

        Raises:
            StoreRolledBack: Its epoch is not the one that was seen last.
            KeyFileRefused: What is remembered cannot be relied on.
        """
        record = self._read()
        if record is None:
            return 0
        if record.epoch != epoch and accepted_at > record.seen_at:
            return 0
        if record.epoch != epoch:
            raise StoreRolledBack(
                f"{self._shown}: this store is not the one that {self._folder.path} remembers: it was flushed, "
                f"restored or replaced (epoch {epoch[:8] or 'none'}, it was {record.epoch[:8]}); find out what became "
                "of its data, then run `converge store accept`"
            )
        return record.revision

    def note(self, epoch: str, revision: int, now: int) -> None:
        """Remember what was seen.

        Raises:
            KeyFileRefused: It could not be written.
        """
        with locked(self._folder, self._name):
            record = self._read()
            if record is not None and record.epoch == epoch:
                revision = max(revision, record.revision)
            self._write(epoch, revision, now)

    def accept(self, epoch: str) -> Accepted:
        """Accept the store as it is now, whatever was seen of it before.

        Raises:
            KeyFileRefused: It could not be written.
        """
        with locked(self._folder, self._name):
            try:
                record = self._read()
            except KeyFileRefused:
                record = None  # what cannot be read is replaced
            self._write(epoch, 0, 0)
        return Accepted(epoch=epoch, before=record.epoch if record is not None else "")

    def _write(self, epoch: str, revision: int, now: int) -> None:
        self._folder.write(
            f"{self._name}.json", encode(_Record(store=self._shown, epoch=epoch, revision=revision, seen_at=now))
        )

    def _read(self) -> _Record | None:
        data = self._folder.read(f"{self._name}.json")
        try:
            return None if data is None else decode(data, _Record, "what is remembered of a store")
        except ConvergeError as error:
            path = self._folder.path / f"{self._name}.json"
            raise KeyFileRefused(
                path, f"it cannot be read: {error}", "look at the store, then run `converge store accept`"
            ) from None


def _absolute(url: str) -> str:
    if url[:5].lower() == "file:":
        return f"file:{Path(url[5:].removeprefix('//')).absolute()}"
    if url[:10].lower() == "sqlite:///":  # a fourth slash begins an absolute path
        return f"sqlite:///{Path(url[10:]).absolute()}"
    return url

"""What drivers raise, as errors of `converge.errors`: what is the same for every server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

import attrs

from converge.errors import (
    NoSuchStore,
    NotApplied,
    OutcomeUnknown,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)

Code = TypeVar("Code", str, int)

NO_TABLE = "is the network named rightly? `converge store migrate` makes tables that are missing, empty"
NO_RIGHT = "give the user the rights that the reference page lists"
"""What to do where a table, or a right, is missing."""

_LIMIT = 300
"""Characters of a server's message that an error repeats; some quote whole statements."""


@attrs.frozen(kw_only=True)
class Errors(Generic[Code]):
    """The errors of one kind of server, told by the codes with which it names them.

    Attributes:
        code_of: Returns the code of an error, None if it was not the server who spoke: the connection is lost.
        full: Codes of a server that has no room.
        busy: Of one that has no time.
        away: Of one that takes no writes.
        no_room: Of one that takes no more connections.
        no_database: The code of a database that is not there.
        is_login: Whether a code says that the login was refused.
        login: What to look at then.
        mends: What to do about some of the codes.
    """

    code_of: Callable[[BaseException], Code | None]
    full: Collection[Code]
    busy: Collection[Code]
    away: Collection[Code]
    no_room: Collection[Code]
    no_database: Code
    is_login: Callable[[Code], bool]
    login: str
    mends: Mapping[Code, str]

    def connecting_failed(self, error: BaseException, where: str) -> StoreError:
        """Return the error for a connection that could not be made."""
        code, text = self.code_of(error), text_of(error)
        if code is not None:
            if code == self.no_database:
                return StoreUnavailable(f"{where}: {text}; create the database")
            if self.is_login(code):
                return StoreRefused(f"{where} refused the login: {text}; check {self.login}")
            if code in self.no_room:
                return StoreBusy(
                    f"{where} has no connection left: {text}; raise max_connections, or the limit of that user or "
                    "database, or lower the option connections"
                )
            if code not in self.away:
                return self._refusal(code)(f"{where} refused the connection ({code}): {text}; check the URL")
        return StoreUnavailable(f"{where} cannot be reached: {text}")

    def call_failed(self, error: BaseException, where: str, *, writes: bool) -> StoreError:
        """Return the error for a call that was sent.

        Args:
            error: What was raised.
            where: The server, for the message.
            writes: Whether the call may have changed something.
        """
        code, text = self.code_of(error), text_of(error)
        if code is not None:
            mend = f"; {self.mends[code]}" if code in self.mends else ""
            return self._refusal(code)(f"{where} refused the call ({code}): {text}{mend}")
        if writes:
            return OutcomeUnknown(
                f"{where} did not answer: {text}; the call may have taken effect, read before you repeat it"
            )
        return StoreUnavailable(f"{where} did not answer: {text}")

    def _refusal(self, code: Code) -> type[NotApplied]:
        if code in self.full:
            return StoreFull
        if code in self.busy:
            return StoreBusy
        return StoreUnavailable if code in self.away else StoreRefused


def text_of(error: BaseException) -> str:
    """Return the cause's own words: SQLAlchemy's text repeats statement and parameters, which hold users' data."""
    found = getattr(error, "orig", None) or error
    cause = found if isinstance(found, TimeoutError) else found.__cause__ or found
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    said = cause.args[1] if len(cause.args) > 1 and isinstance(cause.args[1], str) else str(cause)
    text = said.split("\n", 1)[0] or type(cause).__name__
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."


LOST = (
    "the network {network} at {where} was put back, or another server took over, and what this process was told is "
    "written at revision {seen} is not there; find out what became of it, then run `converge store accept`: this "
    "process goes on then"
)


def no_network(network: str, where: str) -> NoSuchStore:
    """Return what those who only look are told where there are no tables."""
    return NoSuchStore(f'there is no network "{network}" at {where}; `converge run` with this store makes it')


def check_columns(found: Mapping[str, Collection[str]], wanted: Mapping[str, Collection[str]]) -> None:
    """Refuse tables and views of other programs under our names.

    Args:
        found: The columns of those that are there, by name.
        wanted: Some that ours have had in every release.

    Raises:
        StoreRefused: Which one is not ours.
    """
    for name, columns in found.items():
        if lacking := sorted(set(wanted[name]) - set(columns)):
            raise StoreRefused(
                f'the database has "{name}" of another program, without the column "{lacking[0]}" of ours; choose '
                "another network or database, or rename it"
            )

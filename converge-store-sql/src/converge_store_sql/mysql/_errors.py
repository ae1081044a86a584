"""What the driver of MariaDB and MySQL raises, as errors of `converge.errors`."""

from __future__ import annotations

from converge.errors import (
    NotApplied,
    OutcomeUnknown,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)

DUPLICATE = 1062
RETRIED = frozenset({DUPLICATE, 1213, 1020, 1637})
"""Key taken meanwhile, deadlock, row changed since it was read, too many transactions: the call is run again."""

_FULL = frozenset({1021, 1114, 3, 28})
_BUSY = frozenset({1205, 1040, 1203, 1226, 1317, 3024, 1969, 1041, *RETRIED})
_AWAY = frozenset({1290, 1792, 1836, 1049, 3100})  # a server that only reads, no such database
_LOGIN = frozenset({1044, 1045, 1130, 1698, 1142, 1143, 1227, 1251, 1820, 1862, 4151})
_LOST = frozenset({1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 4031})

_LIMIT = 300
"""Characters of a server's message that an error repeats; some quote whole statements."""


def number_of(error: BaseException) -> int | None:
    """Return the number with which the server named the error, if it was the server who spoke.

    Numbers from 2000 to 2999 are the driver's own: the connection is lost.
    """
    found: BaseException | None = error
    while found is not None:
        arguments = getattr(found, "orig", found).args
        if arguments and type(arguments[0]) is int and 0 < arguments[0] < 100_000 and len(arguments) > 1:
            number = arguments[0]
            return None if number // 1_000 == 2 or number in _LOST else number
        found = getattr(found, "orig", None) or found.__cause__
    return None


def connecting_failed(error: BaseException, where: str) -> StoreError:
    """Return the error for a connection that could not be made."""
    number, text = number_of(error), _text(error)
    if number == 1049:
        return StoreUnavailable(f"{where}: {text}; create the database")
    if number in _LOGIN:
        return StoreRefused(f"{where} refused the login: {text}; check user, password and grants")
    if number in _BUSY:
        return StoreBusy(
            f"{where} has no connection left: {text}; raise max_connections, or lower the option connections"
        )
    return StoreUnavailable(f"{where} cannot be reached: {text}")


def call_failed(error: BaseException, where: str, *, writes: bool) -> Exception:
    """Return the error for a call that was sent.

    Args:
        error: What was raised.
        where: The server, for the message.
        writes: Whether the call may have been committed.
    """
    number, text = number_of(error), _text(error)
    if number is None:
        if writes:
            return OutcomeUnknown(
                f"{where} did not answer: {text}; the call may have taken effect, read before you repeat it"
            )
        return StoreUnavailable(f"{where} did not answer: {text}")
    return _refusal(number)(f"{where} refused the call ({number}): {text}")


def _refusal(number: int) -> type[NotApplied]:
    if number in _FULL:
        return StoreFull
    if number in _BUSY:
        return StoreBusy
    return StoreUnavailable if number in _AWAY else StoreRefused


def _text(error: BaseException) -> str:
    found = getattr(error, "orig", None) or error
    if isinstance(found, TimeoutError):
        return "no answer in time"
    said = found.args[1] if len(found.args) > 1 and isinstance(found.args[1], str) else str(found)
    text = said.split("\n", 1)[0] or type(found).__name__
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."

"""The driver's errors as the contract's, in one place. No text of a URL, and no password, gets through."""

from __future__ import annotations

from redis import exceptions as driver

from converge.errors import ConvergeError, OutcomeUnknown, StoreBusy, StoreFull, StoreRefused, StoreUnavailable


def of_connecting(error: BaseException, where: str) -> ConvergeError:
    """Return what a failed connect means: nothing was sent."""
    if isinstance(error, driver.AuthenticationError | driver.AuthorizationError):
        return StoreRefused(f"redis at {where} refuses the user or the password: {_text(error)}")
    if isinstance(error, driver.ResponseError) and not isinstance(error, driver.BusyLoadingError):
        return of_answer(error, where)
    return StoreUnavailable(f"redis at {where} cannot be reached: {_text(error) or type(error).__name__}")


def of_call(error: BaseException, where: str, *, writes: bool) -> ConvergeError:
    """Return what an error after sending means: a write may have been applied."""
    if isinstance(error, driver.ResponseError):
        return of_answer(error, where)
    if writes:
        return OutcomeUnknown(f"redis at {where} gave no answer ({_text(error) or type(error).__name__}); the call may have been applied")
    return StoreUnavailable(f"redis at {where} gave no answer: {_text(error) or type(error).__name__}")


def of_answer(error: driver.ResponseError, where: str) -> ConvergeError:
    """Return what an error that the server answered means: it has applied nothing."""
    text = _text(error)
    if isinstance(error, driver.OutOfMemoryError) or "OOM" in text:
        return StoreFull(f"redis at {where} has reached maxmemory; nothing was written: raise it, or shorten retention")
    if isinstance(error, driver.BusyLoadingError) or text.startswith(("LOADING", "MASTERDOWN")):
        return StoreUnavailable(f"redis at {where} is not ready: {text}")
    if text.startswith("BUSY"):
        return StoreBusy(f"redis at {where} is busy with a script of another client: {text}")
    if "MISCONF" in text:
        return StoreFull(f"redis at {where} refuses writes since it cannot save to disk: {text}")
    return StoreRefused(f"redis at {where} refuses: {text}")


def _text(error: BaseException) -> str:
    return str(error).replace("\n", " ")[:300]

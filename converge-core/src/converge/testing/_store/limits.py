"""How long a call of a backend under test may take, and a test: one that hangs is told by its clause and the call."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ClassVar

import anyio
import attrs
import pytest

from converge.contracts.store import Store
from converge.errors import ConvergeError
from converge.plugins.answers import mistake
from converge.testing.clauses import ClauseBroken, cited

READS = ("get", "scan", "count", "time", "retention_time", "facts", "inspect")
CALLS = (*READS, "commit", "turn", "advance", "note_format")
AGAIN_SEC = 10.0
"""How long the end of a test that hung may wait at once, where its limit is not shorter: each handle may hang, too."""


def clause_of(request: pytest.FixtureRequest) -> str:
    """Return the clause that the running test is about."""
    return next(iter(cited(request.function)), "?")


@attrs.frozen
class CallLimit:
    """The clause of the test that is run, and how long each call of it may take."""

    clause: str
    seconds: float

    def put_on(self, backend: object, calls: Iterable[str]) -> None:
        """Put the limit around these calls of an opened backend."""
        for name in calls:
            setattr(backend, name, self.on(name, getattr(backend, name), backend))

    def on(self, name: str, call: Callable[..., Any], backend: object) -> Callable[..., Any]:
        """Return the call of a backend with the limit around it; its answer has the shape that the contract says."""

        @wraps(call)
        async def limited_call(*args: Any, **kwargs: Any) -> Any:
            with anyio.move_on_after(self.seconds):
                try:
                    answer = await call(*args, **kwargs)
                    if said := mistake(backend, name, answer, *args, **kwargs):
                        raise ClauseBroken(self.clause, said)
                    return answer
                except (ConvergeError, AssertionError, NotImplementedError, ExceptionGroup):
                    raise
                except Exception as error:
                    kind = f"{type(error).__module__}.{type(error).__qualname__}"
                    said = f"`{name}` let out an error of its driver, which callers do not know: {kind}: {error}"
                    raise ClauseBroken(self.clause, said) from error
            raise ClauseBroken(self.clause, f"`{name}` did not answer within {self.seconds:g} s")

        return limited_call


@asynccontextmanager
async def limited(opens: Callable[[], AbstractAsyncContextManager[Store]], limit: CallLimit) -> AsyncIterator[Store]:
    """Open a store whose calls have the limit around them, those of its other handles too."""
    async with opens() as store:
        reopen = store.reopen
        limit.put_on(store, CALLS)
        store.reopen = lambda: limited(reopen, limit)  # type: ignore[method-assign]  # of this handle alone
        yield store


@contextmanager
def alarm(seconds: float, error: Callable[[], Exception]) -> Iterator[list[int]]:
    """Raise the error in the main thread once the time is up, and again while an event loop runs; where somebody else
    uses the alarm, that one watches. Yield the signals after which it was raised.
    """
    rung: list[int] = []
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0]
    ):
        yield rung
        return

    def ring(number: int, frame: FrameType | None) -> None:
        if not rung or _is_in_anyio(frame):  # pytest may be telling of the first
            rung.append(number)
            raise error()

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, min(seconds, AGAIN_SEC))
    try:
        yield rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _is_in_anyio(frame: FrameType | None) -> bool:
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith("anyio."):
        frame = frame.f_back
    return frame is not None


class TimeLimited:
    """Tests each of which ends in time, also where a call blocks the event loop.

    Attributes:
        case_limit_sec: How long a whole test may take, in the main thread, where pytest-timeout does not watch it: a
            call that blocks the event loop can be ended by nothing else.
    """

    case_limit_sec: ClassVar[float] = 600.0

    @pytest.fixture(autouse=True)
    def time_limit(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """End a test that hangs, and say in which clause."""
        clause = clause_of(request)
        said = f"the test did not end within {self.case_limit_sec:g} s: a call blocks the event loop, or waits for ever"
        with alarm(self.case_limit_sec, lambda: ClauseBroken(clause, said)) as rung:
            yield
        if rung:
            from anyio.pytest_plugin import get_runner  # pytest has loaded it

            with get_runner("asyncio", {}):  # anyio lets go of an event loop in whose end the alarm rang
                pass

"""One outage, however many meet it, is one line when it begins and one when it is over; what does not pass by itself is
one more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from converge.env import Env
from converge.errors import StoreBusy, StoreRefused, StoreRolledBack, StoreUnavailable
from converge.services.store.outage import BEGINS, BRIEF_SEC, ENDS, LOG_AGAIN_SEC, Outage

AWAY = StoreUnavailable("nobody listens")


class Clock:
    """A clock that is set by hand."""

    now = 1_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outage(clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[Outage]:
    caplog.set_level(logging.INFO)
    yield Outage(Env(monotonic=lambda: clock.now))


def test_the_parts_that_meet_it_write_one_line_together_and_one_when_the_last_is_answered(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("claims", "sweep", "claims", "renewal"):
        outage.failed(part, AWAY)
        clock.now += 1.0
    assert outage.since == 1_000.0 and outage.error is AWAY
    for part in ("sweep", "renewal"):
        outage.works(part)
    assert outage.since == 1_000.0, "claims still fail"
    outage.works("claims")
    assert [outage.since, outage.error] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [f"{BEGINS}: nobody listens", f"{ENDS}, after 4.0 s"]


def test_a_part_that_never_failed_ends_nothing(outage: Outage) -> None:
    outage.failed("claims", AWAY)
    outage.works("sweep")
    outage.left("sweep")
    assert outage.since is not None


def test_a_store_that_refuses_again_and_again_between_answers_is_told_once(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(int(LOG_AGAIN_SEC * 2)):
        outage.failed("claims", StoreBusy("locked"))
        assert outage.since is not None, "whoever asks knows at once, whatever the log says"
        outage.works("claims")
        clock.now += 0.4
    assert len(caplog.records) == 2


def test_an_outage_that_lasts_is_told_though_it_began_soon_after_another(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outage.failed("claims", AWAY)
    clock.now += BRIEF_SEC
    outage.works("claims")
    caplog.clear()
    for _ in range(5):
        outage.failed("claims", AWAY)
        clock.now += LOG_AGAIN_SEC / 4
    outage.failed("claims", AWAY)
    outage.works("claims")
    assert [record.getMessage().partition(":")[0].partition(",")[0] for record in caplog.records] == [
        BEGINS.partition(",")[0],
        ENDS,
    ]


def test_a_brief_answer_amid_an_outage_is_not_its_end(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that stops ends one connection after another: a call on the next one is still answered."""
    outage.failed("claims", AWAY)
    outage.works("claims")
    assert outage.since is None, "whoever asks knows at once, whatever the log says"
    clock.now += 0.1
    outage.failed("claims", AWAY)
    clock.now += 3.0
    outage.works("claims")
    assert [record.getMessage() for record in caplog.records] == [f"{BEGINS}: nobody listens", f"{ENDS}, after 3.1 s"]


def test_a_brief_outage_is_over_once_the_store_has_worked_for_a_while(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outage.failed("claims", AWAY)
    clock.now += 0.1
    outage.works("claims")
    clock.now += BRIEF_SEC / 2
    outage.works("renewal")
    assert len(caplog.records) == 1
    clock.now += BRIEF_SEC / 2
    for _ in range(2):
        outage.works("renewal")
    assert [record.getMessage() for record in caplog.records[1:]] == [f"{ENDS}, after 0.1 s"]


def test_what_does_not_pass_by_itself_is_told_once_though_the_outage_began_otherwise(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is restarted with another password, or with a backup, is away at first."""
    for error in (AWAY, StoreBusy("locked"), StoreRefused("wrong password"), StoreRolledBack("put back")):
        for part in ("claims", "renewal"):
            outage.failed(part, error)
            clock.now += 0.1
    outage.failed("claims", AWAY)
    outage.failed("claims", StoreRefused("wrong password"))
    assert [record.getMessage().removeprefix(f"{BEGINS}: ") for record in caplog.records] == [
        "nobody listens",
        "wrong password",
        "put back",
    ]


def test_a_part_that_asks_no_more_fails_no_more(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    outage.failed("results", AWAY)
    outage.left("results")
    assert outage.since is None
    assert len(caplog.records) == 1, "nobody knows whether it works again"

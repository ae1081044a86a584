"""What a receiver remembers of its senders: each message is taken once, and nothing is forgotten early."""

from __future__ import annotations

import pytest

from converge.machines.stream import Pair, Seen, Streams

ONE, OTHER, THIRD = Pair("a", "lease", "b"), Pair("a", "lease", "c"), Pair("x", "lease", "b")


def taken(streams: Streams, pair: Pair, sequence: int, now: float = 0.0) -> None:
    """Let a new message be taken."""
    id_ = f"m{sequence}"
    assert streams.see(pair, sequence, id_, now) is Seen.NEW
    streams.take(pair, sequence, id_, now)


def test_a_message_that_was_taken_is_repeated_however_often_it_comes() -> None:
    streams = Streams()
    taken(streams, ONE, 1)
    assert [streams.see(ONE, 1, "m1", now) for now in (0.0, 1.0)] == [Seen.REPEATED, Seen.REPEATED]


def test_a_message_that_was_seen_and_not_taken_is_still_new() -> None:
    streams = Streams()
    assert [streams.see(ONE, 1, "m1", 0.0) for _ in range(2)] == [Seen.NEW, Seen.NEW]


def test_a_message_before_the_last_is_old_and_never_taken_again() -> None:
    streams = Streams()
    taken(streams, ONE, 1)
    taken(streams, ONE, 3)
    assert streams.see(ONE, 1, "m1", 0.0) is Seen.OLD
    assert streams.see(ONE, 2, "m2", 0.0) is Seen.OLD


def test_another_message_with_the_number_of_the_last_is_not_taken_for_it() -> None:
    streams = Streams()
    taken(streams, ONE, 1)
    assert streams.see(ONE, 1, "another", 0.0) is Seen.OLD


@pytest.mark.parametrize("pair", [OTHER, THIRD, ONE._replace(lease="next life")])
def test_a_sequence_counts_for_one_sender_in_one_life_and_one_recipient(pair: Pair) -> None:
    streams = Streams()
    taken(streams, ONE, 5)
    assert streams.see(pair, 1, "m1", 0.0) is Seen.NEW


def test_a_new_sender_is_refused_while_there_is_no_room_and_nobody_is_forgotten_for_it() -> None:
    streams = Streams(pairs=2, window_sec=10.0)
    taken(streams, ONE, 1)
    taken(streams, OTHER, 1)
    assert streams.see(THIRD, 1, "m1", 9.9) is Seen.REFUSED
    assert [streams.see(pair, 1, "m1", 9.9) for pair in (ONE, OTHER)] == [Seen.REPEATED, Seen.REPEATED]


def test_a_sender_is_forgotten_after_the_window_and_makes_room() -> None:
    streams = Streams(pairs=1, window_sec=10.0)
    taken(streams, ONE, 1)
    assert streams.see(OTHER, 1, "m1", 9.9) is Seen.REFUSED
    assert streams.see(OTHER, 1, "m1", 10.0) is Seen.NEW


def test_the_window_counts_from_the_last_message_of_a_pair() -> None:
    streams = Streams(pairs=2, window_sec=10.0)
    taken(streams, ONE, 1, now=0.0)
    taken(streams, OTHER, 1, now=5.0)
    taken(streams, ONE, 2, now=8.0)
    assert streams.see(THIRD, 1, "m1", 15.0) is Seen.NEW  # OTHER has gone
    assert streams.see(ONE, 2, "m2", 15.0) is Seen.REPEATED

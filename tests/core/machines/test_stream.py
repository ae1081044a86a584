"""What a receiver remembers of its senders: each message is taken once, in order, and nothing is forgotten early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converge.machines.stream import Pair, Seen, Streams

ONE, OTHER, THIRD = Pair("a", "lease", "b"), Pair("a", "lease", "c"), Pair("x", "lease", "b")


def taken(streams: Streams, pair: Pair, sequence: int, now: float = 0.0) -> None:
    """Let a new message be taken."""
    assert streams.see(pair, sequence, 0, now) is Seen.NEW
    streams.accept(pair, sequence, now)


def test_a_message_that_was_taken_is_repeated_however_often_it_comes() -> None:
    streams = Streams()
    taken(streams, ONE, 1)
    assert [streams.see(ONE, 1, 0, now) for now in (0.0, 1.0)] == [Seen.REPEATED, Seen.REPEATED]


def test_a_message_that_was_seen_and_not_taken_is_still_new() -> None:
    streams = Streams()
    assert [streams.see(ONE, 1, 0, 0.0) for _ in range(2)] == [Seen.NEW, Seen.NEW]


def test_a_message_below_the_highest_is_never_taken_again() -> None:
    streams = Streams()
    taken(streams, ONE, 1)
    taken(streams, ONE, 3)
    assert [streams.see(ONE, sequence, 0, 0.0) for sequence in (1, 2)] == [Seen.REPEATED, Seen.REPEATED]


def test_a_message_waits_for_the_one_that_was_under_way_before_it() -> None:
    streams = Streams()
    assert streams.see(ONE, 8, 7, 0.0) is Seen.EARLY
    taken(streams, ONE, 7)
    assert streams.see(ONE, 8, 7, 0.0) is Seen.NEW


@pytest.mark.parametrize("pair", [OTHER, THIRD, ONE._replace(lease="next life")])
def test_a_sequence_counts_for_one_sender_in_one_life_and_one_recipient(pair: Pair) -> None:
    streams = Streams()
    taken(streams, ONE, 5)
    assert streams.see(pair, 1, 0, 0.0) is Seen.NEW


def test_a_new_sender_is_refused_while_there_is_no_room_and_nobody_is_forgotten_for_it() -> None:
    streams = Streams(senders=2, window_sec=10.0)
    taken(streams, ONE, 1)
    taken(streams, THIRD, 1)
    assert streams.see(Pair("y", "lease", "b"), 1, 0, 9.9) is Seen.REFUSED
    assert streams.see(OTHER, 1, 0, 9.9) is Seen.NEW, (
        "another recipient of a sender that is known needs no room for a sender"
    )
    assert [streams.see(pair, 1, 0, 9.9) for pair in (ONE, THIRD)] == [Seen.REPEATED, Seen.REPEATED]


def test_pairs_are_bounded_as_senders_are() -> None:
    streams = Streams(pairs=2, window_sec=10.0)
    taken(streams, ONE, 1)
    taken(streams, OTHER, 1)
    assert streams.see(ONE._replace(to="d"), 1, 0, 9.9) is Seen.REFUSED
    taken(streams, ONE, 2, now=1.0)
    assert streams.see(THIRD, 1, 0, 10.9) is Seen.REFUSED, "the sender's last message was 9.9 s ago"
    assert streams.see(THIRD, 1, 0, 11.0) is Seen.NEW


def test_a_sender_is_forgotten_after_the_window_and_makes_room() -> None:
    streams = Streams(senders=1, window_sec=10.0)
    taken(streams, ONE, 1)
    assert streams.see(THIRD, 1, 0, 9.9) is Seen.REFUSED
    assert streams.see(THIRD, 1, 0, 10.0) is Seen.NEW


def test_the_window_counts_from_the_last_message_of_a_sender() -> None:
    streams = Streams(senders=2, window_sec=10.0)
    taken(streams, ONE, 1, now=0.0)
    taken(streams, THIRD, 1, now=5.0)
    taken(streams, ONE, 2, now=8.0)
    assert streams.see(Pair("y", "lease", "b"), 1, 0, 15.0) is Seen.NEW  # THIRD has gone
    assert streams.see(ONE, 2, 0, 15.0) is Seen.REPEATED


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["first", "again", "fails"])), max_size=60))
def test_whatever_is_repeated_and_in_whatever_order_each_message_is_taken_once_and_in_order(
    steps: list[tuple[int, str]],
) -> None:
    """A sender with six messages of one pair, all under way until they are taken or fail; copies arrive as `steps`
    says.
    """
    streams, under_way, order, settled = Streams(), list(range(1, 7)), [], set()
    for which, how in steps:
        sequence = which + 1
        if how == "fails" and sequence in under_way:
            under_way.remove(sequence)
            continue
        if sequence not in under_way:
            continue
        before = max((one for one in under_way if one < sequence), default=0)
        seen = streams.see(ONE, sequence, before, 0.0)
        if seen is Seen.NEW:
            streams.accept(ONE, sequence, 0.0)
            order.append(sequence)
        if seen is Seen.REPEATED:
            assert sequence in order, f"{sequence} was said to be taken, and never was: {order}"
        if how == "first" and seen in (Seen.NEW, Seen.REPEATED):
            under_way.remove(sequence)  # its receipt arrives; otherwise it is lost
            settled.add(sequence)
    assert order == sorted(set(order))
    assert settled <= set(order)

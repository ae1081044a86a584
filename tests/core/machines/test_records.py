"""Records: items in and out of frames, fragments, counters, and what a peer may not send."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import Sequence

import pytest

from converge.errors import BadRecord, ConvergeError, MessageTooLarge, VersionMismatch
from converge.machines.noise import CipherState
from converge.machines.records import (
    ACCEPT,
    BAD,
    CLOSE,
    CLOSE_TEXT_BYTES,
    CUT,
    FRAME_BYTES,
    GONE,
    KNOWN,
    MESSAGE,
    MESSAGE_BYTES,
    MORE,
    PADDING,
    PING,
    PLAIN_BYTES,
    PONG,
    REASONS,
    RECEIPT,
    SHOWN,
    SIGNED,
    SIGNED_TOGETHER,
    SKIPPED,
    Item,
    Opener,
    Sealer,
    close_body,
    close_reason,
)

KEY = bytes(range(32))
HEAD = struct.Struct(">IBB")


def pair(message_bytes: int = MESSAGE_BYTES, suite: int = 1) -> tuple[Sealer, Opener]:
    return Sealer(CipherState(suite, KEY), message_bytes), Opener(CipherState(suite, KEY), message_bytes)


def item(kind: int, body: bytes, flags: int = 0) -> bytes:
    return HEAD.pack(len(body), kind, flags) + body


class Peer:
    """A peer that has the key and sends whatever a test says."""

    def __init__(self, message_bytes: int = MESSAGE_BYTES, accept: bytes | None = None) -> None:
        self.cipher = CipherState(1, KEY)
        self.opener = Opener(CipherState(1, KEY), message_bytes, accept=accept)

    def says(self, *parts: bytes) -> list[Item]:
        return self.opener.open(self.cipher.encrypt(b"".join(parts)))


def passed(items: Sequence[Item], message_bytes: int = MESSAGE_BYTES) -> tuple[list[Item], int]:
    sealer, opener = pair(message_bytes)
    frames = sealer.seal(items)
    assert all(len(frame) <= FRAME_BYTES for frame in frames)
    return [found for frame in frames for found in opener.open(frame)], len(frames)


# Items in and out.


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 32, 1000])
@pytest.mark.parametrize("size", [0, 1, 5, 6, 7, 54, 256])
def test_items_alike_come_out_as_they_went_in(count: int, size: int) -> None:
    source = random.Random(count * 1000 + size)
    items = [(MESSAGE, source.randbytes(size)) for _ in range(count)]
    assert passed(items)[0] == items


@pytest.mark.parametrize("seed", range(60))
def test_any_items_come_out_in_order_and_whole(seed: int) -> None:
    source = random.Random(seed)
    largest = source.choice([3, 40, 5_000, 80_000, 300_000])
    items: list[Item] = []
    for _ in range(source.randrange(1, 40)):
        kind = source.choice([CLOSE, MESSAGE, RECEIPT, SIGNED, PING, PONG])
        size = source.randrange(largest if kind in CUT else min(largest, 1_000))
        items.append((kind, source.randbytes(size)))
    assert passed(items)[0] == items, f"seed {seed}"


@pytest.mark.parametrize("kinds", [(MESSAGE, RECEIPT), (MESSAGE, PING), (CLOSE, MESSAGE), (PONG, PING)])
def test_items_of_one_size_and_two_kinds_keep_their_kinds(kinds: tuple[int, int]) -> None:
    items = [(kinds[number % 5 == 4], b"%08d" % number) for number in range(20)]
    assert passed(items) == (items, 1)


def test_bodies_that_look_like_headers_are_bodies() -> None:
    # The shortcut for items that are alike must not take a body for a header, whatever the sizes.
    for size in (6, 12, 18):
        items = [(MESSAGE, HEAD.pack(size, MESSAGE, 0) * (size // 6))] * 10
        assert passed(items)[0] == items
    # A body that is the others' header stands beside a header that differs: as many headers as there should be, and yet
    # not alike.
    mixed = [(MESSAGE, b"abcdef")] * 4 + [(RECEIPT, HEAD.pack(6, MESSAGE, 0))]
    assert passed(mixed)[0] == mixed
    # The first size divides the record, but the items are not alike.
    odd = [(MESSAGE, b"a" * 10), (MESSAGE, b"b" * 4), (MESSAGE, b"c" * 16), (MESSAGE, b"d" * 10), (MESSAGE, b"e" * 10)]
    assert sum(len(body) + 6 for _, body in odd) % 16 == 0
    assert passed(odd)[0] == odd


def test_no_items_need_no_frame_and_an_empty_record_holds_none() -> None:
    assert pair()[0].seal([]) == []
    assert Peer().says() == []


def test_a_record_is_filled_to_its_last_byte() -> None:
    whole = b"x" * (PLAIN_BYTES - 6)
    assert passed([(MESSAGE, whole)]) == ([(MESSAGE, whole)], 1)
    assert passed([(MESSAGE, whole + b"y")]) == ([(MESSAGE, whole + b"y")], 2)
    assert passed([(PING, b""), (MESSAGE, whole)])[1] == 2


@pytest.mark.parametrize(
    "size", [PLAIN_BYTES - 6, 2 * (PLAIN_BYTES - 6), 2 * (PLAIN_BYTES - 6) + 1, MESSAGE_BYTES - 1, MESSAGE_BYTES]
)
@pytest.mark.parametrize("kind", sorted(CUT))
def test_a_message_up_to_the_limit_is_cut_and_put_together(kind: int, size: int) -> None:
    body = random.Random(size).randbytes(size)
    assert passed([(PING, b"a"), (kind, body), (PONG, b"b")])[0] == [(PING, b"a"), (kind, body), (PONG, b"b")]


def test_one_byte_over_the_limit_is_refused_before_anything_is_sealed() -> None:
    sealer, opener = pair()
    with pytest.raises(MessageTooLarge, match="1048577"):
        sealer.seal([(MESSAGE, b"fine"), (MESSAGE, bytes(MESSAGE_BYTES + 1))])
    (frame,) = sealer.seal([(MESSAGE, b"fine")])
    assert opener.open(frame) == [(MESSAGE, b"fine")]


@pytest.mark.parametrize("count", [1, 4, 30])
def test_a_smaller_limit_holds_for_messages_and_not_for_control_items(count: int) -> None:
    assert passed([(CLOSE, bytes(101))] * count, 100)[0] == [(CLOSE, bytes(101))] * count
    for kind in (MESSAGE, SIGNED_TOGETHER):
        assert passed([(kind, bytes(100))] * count, 100)[0] == [(kind, bytes(100))] * count
        with pytest.raises(MessageTooLarge):
            pair(100)[0].seal([(kind, bytes(101))] * count)
        with pytest.raises(MessageTooLarge):
            Peer(100).says(*[item(kind, bytes(101))] * count)


def test_a_control_item_is_never_cut() -> None:
    for kind in (CLOSE, SIGNED_TOGETHER):
        with pytest.raises(MessageTooLarge, match=f"kind {kind}"):
            pair()[0].seal([(kind, bytes(PLAIN_BYTES))])


# What a peer may not send.

USUAL = item(MESSAGE, b"hello")


@pytest.mark.parametrize(
    "plain",
    [
        *[USUAL[:size] for size in range(1, len(USUAL))],
        USUAL + b"\0",
        HEAD.pack(6, MESSAGE, 0) + b"hello",
        HEAD.pack(2**32 - 1, MESSAGE, 0) + b"hello",
        HEAD.pack(2**31, MESSAGE, MORE) + b"hello",
        USUAL * 3 + HEAD.pack(6, MESSAGE, 0) + b"hello",
        USUAL * 8 + USUAL[:-1],
        item(PADDING, b"")[:-1],
        HEAD.pack(1, PADDING, 0),
        HEAD.pack(1, 200, 0),
    ],
    ids=lambda plain: f"{len(plain)} bytes {plain[:6].hex()}",
)
def test_lengths_that_do_not_add_up_are_refused(plain: bytes) -> None:
    with pytest.raises(BadRecord, match="add up"):
        Peer().says(plain)


def test_every_kind_is_taken_skipped_or_refused() -> None:
    for count in (1, 6):
        for kind in range(256):
            records = [item(kind, b"body")] * count
            if kind in (SHOWN, GONE, SIGNED_TOGETHER):
                assert Peer().says(*records) == [(kind, b"body")] * count
            elif kind == PADDING or kind >= SKIPPED:
                assert Peer().says(*records) == []
            elif kind == ACCEPT or kind >= KNOWN:
                with pytest.raises(BadRecord, match="unknown kind" if kind != ACCEPT else "ACCEPT"):
                    Peer().says(*records)
            else:
                assert Peer().says(*records) == [(kind, b"body")] * count


@pytest.mark.parametrize("flags", range(2, 256))
def test_an_unknown_flag_is_refused(flags: int) -> None:
    for kind in (MESSAGE, PING, PADDING, 200):
        with pytest.raises(BadRecord, match="flags"):
            Peer().says(*[item(kind, b"body", flags)] * 5)


@pytest.mark.parametrize("kind", [PADDING, CLOSE, PING, PONG, 128, 255])
def test_a_fragment_of_a_control_item_is_refused(kind: int) -> None:
    with pytest.raises(BadRecord, match="cannot be cut"):
        Peer().says(item(kind, b"body", MORE))


def test_control_items_may_stand_between_fragments_and_come_out_first() -> None:
    peer = Peer()
    assert peer.says(item(MESSAGE, b"one ", MORE), item(PING, b"p")) == [(PING, b"p")]
    assert peer.opener._pending is not None
    assert peer.says(*[item(PONG, b"q")] * 5) == [(PONG, b"q")] * 5
    assert peer.says(item(PADDING, b"zzz"), item(200, b"zzz")) == []
    assert peer.says(item(CLOSE, b"\0\0"), item(MESSAGE, b"two"), item(MESSAGE, b"next")) == [
        (CLOSE, b"\0\0"),
        (MESSAGE, b"one two"),
        (MESSAGE, b"next"),
    ]
    assert peer.opener._pending is None


@pytest.mark.parametrize("first", sorted(CUT))
@pytest.mark.parametrize("second", sorted(CUT))
@pytest.mark.parametrize("flags", [0, MORE])
def test_fragments_of_two_messages_cannot_be_interleaved(first: int, second: int, flags: int) -> None:
    peer = Peer()
    peer.says(item(first, b"one", MORE))
    if first != second:
        with pytest.raises(BadRecord, match="mixed"):
            peer.says(item(second, b"two", flags))
    else:
        assert peer.says(item(second, b"two", flags)) == ([] if flags else [(first, b"onetwo")])


def test_fragments_that_add_up_to_one_byte_over_the_limit_are_refused() -> None:
    step = 65_000
    count, rest = divmod(MESSAGE_BYTES, step)
    peer, greedy = Peer(), Peer()
    for either in (peer, greedy):
        for _ in range(count):
            assert either.says(item(MESSAGE, bytes(step), MORE)) == []
    assert peer.says(item(MESSAGE, bytes(rest))) == [(MESSAGE, bytes(MESSAGE_BYTES))]
    with pytest.raises(MessageTooLarge):
        greedy.says(item(MESSAGE, bytes(rest + 1)))


def test_endless_fragments_end_in_an_error_and_stay_within_the_limits_memory() -> None:
    limit, each = 200_000, 16_000
    peer, sent = Peer(limit), 0
    # Fragments of two bytes: kept one by one, they would take some thirty times the limit.
    plain = item(MESSAGE, b"xy", MORE) * (each // 2)
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLarge):
            for _ in range(limit // each + 1):
                peer.says(plain)
                sent += each
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert limit - each < sent <= limit
    assert peak < 5 * limit


def test_an_empty_fragment_that_announces_another_is_refused() -> None:
    with pytest.raises(BadRecord, match="empty fragment"):
        Peer().says(item(MESSAGE, b"", MORE))


def test_a_frame_longer_than_a_record_can_be_is_refused_undecrypted() -> None:
    sealer, opener = pair()
    (frame,) = sealer.seal([(MESSAGE, bytes(PLAIN_BYTES - 6))])
    assert len(frame) == FRAME_BYTES
    with pytest.raises(BadRecord, match="65536"):
        opener.open(frame + b"\0")


# Counters: what the transport, or somebody on the way, may not do.


def numbered(count: int, suite: int = 1) -> tuple[list[bytes], Opener]:
    sealer, opener = pair(suite=suite)
    return [sealer.seal([(MESSAGE, b"%d" % number)])[0] for number in range(count)], opener


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("order", [(0, 0), (1,), (0, 2), (0, 1, 0), (0, 1, 1), (2,)])
def test_a_record_replayed_skipped_or_reordered_is_refused(suite: int, order: tuple[int, ...]) -> None:
    frames, opener = numbered(3, suite)
    for position in order[:-1]:
        assert opener.open(frames[position]) == [(MESSAGE, b"%d" % position)]
    with pytest.raises(BadRecord, match="not authentic"):
        opener.open(frames[order[-1]])


def test_after_a_refused_record_even_the_genuine_one_is_refused() -> None:
    frames, opener = numbered(2)
    with pytest.raises(BadRecord):
        opener.open(frames[1])
    for frame in frames:
        with pytest.raises(BadRecord, match="earlier"):
            opener.open(frame)


def test_a_peers_own_record_reflected_to_it_is_refused() -> None:
    one, other = CipherState(1, KEY), CipherState(1, bytes(32))
    sealer, opener = Sealer(one), Opener(other)
    with pytest.raises(BadRecord):
        opener.open(sealer.seal([(MESSAGE, b"x")])[0])


@pytest.mark.parametrize("suite", [1, 2])
def test_no_flipped_bit_truncation_or_extension_of_a_record_is_accepted(suite: int) -> None:
    (frame,), _ = numbered(1, suite)
    altered = (
        [frame[:size] for size in range(len(frame))] + [frame + bytes([byte]) for byte in range(256)] + [b"\0" + frame]
    )
    for bit in range(8 * len(frame)):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        altered.append(bytes(flipped))
    for wrong in altered:
        with pytest.raises(BadRecord):
            numbered(1, suite)[1].open(wrong)
    assert numbered(1, suite)[1].open(frame) == [(MESSAGE, b"0")]


def test_a_boundary_that_the_transport_moved_is_refused_wherever_it_lies() -> None:
    frames, _ = numbered(2)
    stream = b"".join(frames)
    for cut in range(len(stream) + 1):
        opener = numbered(0)[1]
        if cut == len(frames[0]):
            assert [opener.open(stream[:cut]), opener.open(stream[cut:])] == [[(MESSAGE, b"0")], [(MESSAGE, b"1")]]
            continue
        with pytest.raises(BadRecord):
            opener.open(stream[:cut])


def test_an_end_within_a_message_is_seen_at_every_boundary() -> None:
    sealer, opener = pair()
    items = [(MESSAGE, b"a"), (MESSAGE, bytes(200_000)), (PING, b""), (SIGNED, bytes(100_000)), (MESSAGE, b"z")]
    seen = []
    for frame in [frame for one in items for frame in sealer.seal([one])]:
        opener.open(frame)
        seen.append(opener._pending is None)
    assert seen == [True, False, False, False, True, True, False, True, True]


# ACCEPT, CLOSE, garbage.


def test_accept_must_come_first_and_with_the_agreed_terms() -> None:
    assert Peer(accept=b"terms").says(item(ACCEPT, b"terms")) == []
    assert Peer(accept=b"terms").says(item(ACCEPT, b"terms"), item(MESSAGE, b"m")) == [(MESSAGE, b"m")]
    with pytest.raises(VersionMismatch):
        Peer(accept=b"terms").says(item(ACCEPT, b"other"))
    for wrong in (
        b"",
        item(MESSAGE, b"m"),
        item(ACCEPT, b"terms")[:-1],
        item(ACCEPT, b"terms and more"),
        item(ACCEPT, b"terms", MORE),
    ):
        with pytest.raises(BadRecord):
            Peer(accept=b"terms").says(wrong)
    again = Peer(accept=b"terms")
    assert not again.opener.is_accepted
    again.says(item(ACCEPT, b"terms"))
    assert again.opener.is_accepted
    with pytest.raises(BadRecord, match="out of turn"):
        again.says(item(ACCEPT, b"terms"))


def test_a_close_says_why_on_one_line() -> None:
    assert [close_reason(close_body(code)) for code in range(len(REASONS))] == list(REASONS)
    assert close_reason(close_body(BAD, "a\nb\x1b[31m")) == "bad record: a\\nb\\x1b[31m"
    assert close_reason(close_body(999)) == "reason 999"
    assert len(close_body(0, "é" * 200)) == 2 + CLOSE_TEXT_BYTES
    assert close_reason(close_body(0, "x" + "é" * 200)).isascii()
    for wrong in (b"", b"\0", bytes(2 + CLOSE_TEXT_BYTES + 1)):
        with pytest.raises(BadRecord):
            close_reason(wrong)


GARBAGE = 1_000_000 if os.environ.get("FULL_TESTS") == "1" else 10_000


@pytest.mark.timeout(1_800)
def test_garbage_under_the_right_key_gives_typed_errors_only() -> None:
    seed = int(os.environ.get("FUZZ_SEED", random.randrange(2**32)))
    source = random.Random(seed)
    opened = refused = 0
    for _ in range(GARBAGE):
        peer = Peer(source.choice([50, MESSAGE_BYTES]))
        sizes = [source.choice([0, 1, 5, 6, 7, 30, 2**32 - 1]) for _ in range(source.randrange(1, 8))]
        kinds = [source.choice([*range(KNOWN), 8, 127, 128, 255]) for _ in sizes]
        flags = [source.choice([0, 0, 0, 1, 2]) for _ in sizes]
        plain = b"".join(
            HEAD.pack(*three) + source.randbytes(min(three[0], 30)) for three in zip(sizes, kinds, flags, strict=True)
        )
        try:
            peer.says(plain[: source.choice([len(plain), source.randrange(len(plain) + 1)])])
            opened += 1
        except ConvergeError as error:
            assert isinstance(error, BadRecord | MessageTooLarge), f"FUZZ_SEED={seed}"
            refused += 1
        except Exception as error:
            raise AssertionError(f"FUZZ_SEED={seed}") from error
    assert opened > GARBAGE // 50, f"FUZZ_SEED={seed}"
    assert refused > GARBAGE // 2, f"FUZZ_SEED={seed}"

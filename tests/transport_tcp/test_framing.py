"""Frames to bytes and back, however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converge.errors import BadRecord, InvalidValue, MessageTooLarge
from converge_transport_tcp.framing import CHUNK_BYTES, HEADER_BYTES, Decoder, check, encode

LIMIT = 65_535
frames = st.lists(st.one_of(st.binary(min_size=1, max_size=40), st.integers(1, LIMIT).map(bytes)), max_size=12)


@given(sent=frames, cuts=st.lists(st.integers(0, 400_000), max_size=30))
def test_frames_come_back_however_the_stream_is_cut(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(encode(sent))
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    decoder, got = Decoder(LIMIT), list[bytes]()
    for start, end in pairwise(places):
        decoder.feed(stream[start:end], got)
    assert got == sent
    assert not decoder.is_partial
    assert decoder.frames == len(sent)


def test_a_stream_cut_after_every_byte_gives_each_frame_with_its_last_byte() -> None:
    decoder, got, counts = Decoder(LIMIT), list[bytes](), []
    for byte in b"".join(encode([b"ab", b"c"])):
        decoder.feed(bytes([byte]), got)
        counts.append(len(got))
    assert counts == [0] * 5 + [1] * 5 + [2]
    assert got == [b"ab", b"c"]


def test_an_unfinished_frame_is_partial_until_it_is_whole() -> None:
    decoder, got = Decoder(LIMIT), list[bytes]()
    for byte in b"\0\0\0\2a":
        decoder.feed(bytes([byte]), got)
        assert decoder.is_partial
    decoder.feed(b"b", got)
    assert (decoder.is_partial, got) == (False, [b"ab"])


@pytest.mark.parametrize("size", [0, LIMIT + 1, 2**31, 2**32 - 1])
def test_an_impossible_length_is_refused_after_the_frames_before_it(size: int) -> None:
    decoder, got = Decoder(LIMIT), list[bytes]()
    with pytest.raises(BadRecord, match=f"{size} bytes"):
        decoder.feed(b"\0\0\0\1a" + size.to_bytes(HEADER_BYTES, "big"), got)
    assert got == [b"a"]
    assert decoder.frames == 1


def test_chunks_hold_whole_frames_and_little_more_than_their_size() -> None:
    chunks = list(encode([bytes(1_000)] * 1_000))
    assert len(chunks) > 5
    assert all(len(chunk) % (1_000 + HEADER_BYTES) == 0 and len(chunk) < CHUNK_BYTES + 3_000 for chunk in chunks)


def test_a_call_with_one_bad_frame_is_refused_as_a_whole() -> None:
    check([], LIMIT)
    check([b"a", bytes(LIMIT)], LIMIT)
    with pytest.raises(MessageTooLarge):
        check([b"a", bytes(LIMIT + 1)], LIMIT)
    with pytest.raises(InvalidValue):
        check([b"a", b""], LIMIT)

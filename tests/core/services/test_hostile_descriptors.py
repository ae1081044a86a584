"""Whatever bytes stand for a descriptor: they are refused with a typed error in bounded time, or are genuine."""

from __future__ import annotations

import json
import os
import time

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converge.codec import FORMAT, encode
from converge.errors import BadSignature, InvalidKey, SchemaTooNew, TornRecord
from converge.model.descriptor import (
    DESCRIPTOR_BYTES,
    AgentDescriptor,
    network_tag,
    open_descriptor,
    peek_lease,
    sign_descriptor,
)
from converge.model.identity import Identity, agent_id
from converge.services.discovery.directory import Directory

EXAMPLES = 300 if os.environ.get("FULL_TESTS") == "1" else 100
NETWORK = "here"
TYPED = (BadSignature, InvalidKey, TornRecord, SchemaTooNew)
WHO = Identity(bytes(range(32)))
DESCRIPTOR = AgentDescriptor(id=WHO.id, public_key=WHO.public_key.hex(), topics=("news",), lease="00" * 16, sequence=7)
SOUND = sign_descriptor(WHO, DESCRIPTOR, NETWORK)
TAG = b"converge/desc/v1\0" + network_tag(NETWORK)


def signed(payload: bytes) -> bytes:
    """Bytes that an agent of ours has signed, though they are no descriptor of ours."""
    return WHO.sign(TAG + payload) + payload


def refused(data: bytes) -> None:
    directory, began = Directory(NETWORK), time.thread_time()
    with pytest.raises(TYPED):
        open_descriptor(data, NETWORK)
    assert not directory.offer(WHO.id, data)
    assert (len(directory), directory.refused) == (0, 1)
    peek_lease(data)
    assert time.thread_time() - began < 1.0  # of the processor: a machine that stands still is no matter of the bytes


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_are_refused_with_a_typed_error(data: bytes) -> None:
    refused(data)
    refused(SOUND[:64] + data)
    refused(signed(data))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, len(SOUND) * 8 - 1))
def test_any_bit_that_is_flipped_is_found(at: int) -> None:
    data = bytearray(SOUND)
    data[at >> 3] ^= 1 << (at & 7)
    refused(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=40))
def test_what_is_cut_or_has_more_is_refused(at: int, more: bytes) -> None:
    refused(SOUND[:at])
    refused(SOUND + more)
    refused(SOUND[:at] + more + SOUND[at:])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from([field.name for field in attrs.fields(AgentDescriptor)]), json_values)
def test_a_signed_descriptor_with_any_value_in_a_field_is_refused_or_that_value_is_of_the_fields_type(
    name: str, value: object
) -> None:
    record = json.loads(SOUND[64:])
    payload = json.dumps(record | {name: value}).encode("utf-8", "surrogatepass")
    try:
        found = open_descriptor(signed(payload), NETWORK)
    except TYPED:
        return
    assert type(getattr(found, name)) is type(getattr(DESCRIPTOR, name))
    assert found.id == WHO.id


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 8_000,
        b'{"id":' * 2_000,
        b'{"sequence":' + b"9" * 5_000 + b"}",
        b'{"topics": [' + b'"a",' * 2_000 + b'"a"]}',
        b"NaN",
        b'{"id": "\\ud800"}',
        b'{"id": NaN}',
        b'{"v": 99}',
        encode(attrs.evolve(DESCRIPTOR, v=FORMAT + 1)),
        b"",
    ],
)
def test_known_traps_of_decoders_are_refused(payload: bytes) -> None:
    refused(signed(payload))


def test_a_descriptor_that_is_too_long_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converge.model.descriptor.decode", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(BadSignature, match=f"{DESCRIPTOR_BYTES}"):
        open_descriptor(bytes(DESCRIPTOR_BYTES + 1), NETWORK)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f", b"\xff" * 32])
def test_a_key_with_which_anybody_could_sign_is_refused(key: bytes) -> None:
    descriptor = attrs.evolve(DESCRIPTOR, id=agent_id(key), public_key=key.hex())
    data = (b"\x01" + bytes(63)) + encode(descriptor)  # the one signature that verifies every message under such a key
    with pytest.raises(InvalidKey):
        open_descriptor(data, NETWORK)


@pytest.mark.parametrize("key", ["", "zz", "00", WHO.public_key.hex().upper() + "00", " " + WHO.public_key.hex()])
def test_a_key_that_is_no_key_is_refused(key: str) -> None:
    refused(signed(encode(attrs.evolve(DESCRIPTOR, public_key=key))))


@pytest.mark.parametrize("sequence", [-1, 2**63, 2**64, -(2**70)])
def test_a_sequence_outside_64_bits_is_refused(sequence: int) -> None:
    payload = SOUND[64:].replace(b'"sequence":7', b'"sequence":%d' % sequence)
    refused(signed(payload))


def test_a_sound_one_is_taken() -> None:
    directory = Directory(NETWORK)
    assert directory.offer(WHO.id, SOUND)
    assert open_descriptor(SOUND, NETWORK) == DESCRIPTOR

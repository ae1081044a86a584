"""The Noise handshake and ciphers, held to published vectors and to an implementation that is not ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from noise.connection import Keypair, NoiseConnection  # type: ignore[import-untyped]  # it ships no types

from converge.errors import BadRecord, ConvergeError, HandshakeFailed
from converge.machines.noise import SUITES, TAG_BYTES, CipherState, HandshakeState
from converge.machines.records import MESSAGE, REKEY_RECORDS, Opener, Sealer

FIXTURES = Path(__file__).parent / "fixtures"
P25519 = 2**255 - 19
# The u coordinates of small order, with every encoding that is below 2^255, each with and without the unused top bit.
_LOW = 325606250916557431795983626356110631294008115727848805560023387167927233504
_HIGH = 39382357235489614581723060781553021112529911719440698176882885853963445705823
SMALL_U = (0, 1, _LOW, _HIGH, P25519 - 1, P25519, P25519 + 1)
SMALL_POINTS = [(u | top).to_bytes(32, "little") for u in SMALL_U for top in (0, 1 << 255)]


def vectors(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FIXTURES / name).read_text())["vectors"]
    return found


ALL = [*vectors("noise_published.json"), *vectors("noise_vectors.json")]


def key(text: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))


def side(vector: dict[str, Any], role: str) -> HandshakeState:
    suite = next(number for number, name in SUITES.items() if name.decode() == vector["protocol_name"])
    return HandshakeState(
        suite,
        is_initiator=role == "init",
        prologue=bytes.fromhex(vector[f"{role}_prologue"]),
        static=key(vector[f"{role}_static"]),
        ephemeral=key(vector[f"{role}_ephemeral"]),
    )


def plain(seed: str, size: int = 32) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


def pair(suite: int = 1, prologue: bytes = b"p") -> tuple[HandshakeState, HandshakeState]:
    keys = [X25519PrivateKey.from_private_bytes(plain(f"key {number}")) for number in range(4)]
    return (
        HandshakeState(suite, is_initiator=True, prologue=prologue, static=keys[0], ephemeral=keys[1]),
        HandshakeState(suite, is_initiator=False, prologue=prologue, static=keys[2], ephemeral=keys[3]),
    )


def theirs(suite: int, *, is_initiator: bool) -> Any:
    other = NoiseConnection.from_name(SUITES[suite])
    other.set_as_initiator() if is_initiator else other.set_as_responder()
    other.set_prologue(b"p")
    other.set_keypair_from_private_bytes(Keypair.STATIC, plain("their static"))
    other.set_keypair_from_private_bytes(Keypair.EPHEMERAL, plain("their ephemeral"))
    with pytest.warns(UserWarning, match="ephemeral"):  # a fixed one, so that the test is the same each time
        other.start_handshake()
    return other


def met(suite: int, *, is_initiator: bool) -> tuple[HandshakeState, Any]:
    """Our side and theirs, after a handshake in which each payload got across."""
    ours = pair(suite)[0 if is_initiator else 1]
    other = theirs(suite, is_initiator=not is_initiator)
    if is_initiator:
        assert other.read_message(ours.write_e(b"one")) == b"one"
        second = bytes(other.write_message(b"two"))
        ours.read_2(second[:80])
        assert ours.read_payload(second[80:]) == b"two"
        third = ours.begin_3()
        assert other.read_message(third + ours.write_payload(b"three")) == b"three"
    else:
        assert ours.read_e(bytes(other.write_message(b"one"))) == b"one"
        second = ours.begin_2()
        assert other.read_message(second + ours.write_payload(b"two")) == b"two"
        third = bytes(other.write_message(b"three"))
        ours.read_3(third[:48])
        assert ours.read_payload(third[48:]) == b"three"
    assert other.get_handshake_hash() == ours.h
    return ours, other


def replayed(vector: dict[str, Any]) -> Iterator[bool]:
    """Run a vector through both roles; yield whether each value is the vector's."""
    ours, peer = side(vector, "init"), side(vector, "resp")
    payloads = [bytes.fromhex(message["payload"]) for message in vector["messages"]]
    sealed = [bytes.fromhex(message["ciphertext"]) for message in vector["messages"]]
    yield ours.write_e(payloads[0]) == sealed[0]
    yield peer.read_e(sealed[0]) == payloads[0]
    second = peer.begin_2()
    yield second + peer.write_payload(payloads[1]) == sealed[1]
    ours.read_2(sealed[1][:80])
    yield ours.read_payload(sealed[1][80:]) == payloads[1]
    third = ours.begin_3()
    yield third + ours.write_payload(payloads[2]) == sealed[2]
    peer.read_3(sealed[2][:48])
    yield peer.read_payload(sealed[2][48:]) == payloads[2]
    yield ours.h == peer.h == bytes.fromhex(vector["handshake_hash"])
    mine, other = ours.split(), peer.split()
    yield from said([(other[0], mine[1]), (mine[0], other[1])], payloads[3:], sealed[3:])
    for cipher in (*mine, *other):
        cipher.rekey()
    later = vector.get("rekeyed", [])
    ways = [(other[0], mine[1]), (mine[0], other[1])]
    yield from said(
        ways, [bytes.fromhex(one["payload"]) for one in later], [bytes.fromhex(one["ciphertext"]) for one in later]
    )


def said(ways: list[tuple[CipherState, CipherState]], payloads: list[bytes], sealed: list[bytes]) -> Iterator[bool]:
    for step, (payload, ciphertext) in enumerate(zip(payloads, sealed, strict=True)):
        sending, receiving = ways[step % 2]
        yield sending.encrypt(payload) == ciphertext
        yield receiving.decrypt(ciphertext) == payload


@pytest.mark.parametrize(
    "vector", ALL, ids=[f"{vector['protocol_name']}-{number}" for number, vector in enumerate(ALL)]
)
def test_both_roles_write_and_read_what_the_vectors_say(vector: dict[str, Any]) -> None:
    checks = list(replayed(vector))
    assert all(checks)
    assert len(checks) >= 7 + 2 * len(vector["messages"][3:])


def test_the_vectors_hold_both_suites_and_messages_after_rekey() -> None:
    for name in SUITES.values():
        found = [vector for vector in ALL if vector["protocol_name"] == name.decode()]
        assert len(found) == 4
        assert sum(len(vector.get("rekeyed", [])) for vector in found) == 9


@pytest.mark.parametrize("is_initiator", [True, False], ids=["we dial", "they dial"])
@pytest.mark.parametrize("suite", [1, 2], ids=["aesgcm", "chachapoly"])
def test_records_pass_to_and_from_another_implementation_past_the_rekey(suite: int, is_initiator: bool) -> None:
    ours, other = met(suite, is_initiator=is_initiator)
    sending, receiving = ours.split()
    sealer, opener = Sealer(sending), Opener(receiving)
    item = [(MESSAGE, b"0123456789")]
    sealed_item = b"\0\0\0\x0a\3\x000123456789"
    encrypt, decrypt = other.encrypt, other.decrypt
    for number in range(REKEY_RECORDS + 300):
        if number == REKEY_RECORDS:
            other.rekey_inbound_cipher()
            other.rekey_outbound_cipher()
        (frame,) = sealer.seal(item)
        if decrypt(frame) != sealed_item or opener.open(encrypt(sealed_item)) != item:
            pytest.fail(f"record {number} did not get across")
    assert sending.n == receiving.n == REKEY_RECORDS + 300


@pytest.mark.parametrize("suite", [1, 2])
def test_a_peer_that_forgets_the_rekey_is_refused(suite: int) -> None:
    key_bytes = plain("one way")
    sealer, opener = Sealer(CipherState(suite, key_bytes)), Opener(CipherState(suite, key_bytes))
    careless = CipherState(suite, key_bytes)
    for _ in range(REKEY_RECORDS):
        (frame,) = sealer.seal([(MESSAGE, b"")])
        opener.open(frame)
    careless.n = REKEY_RECORDS
    (honest,) = sealer.seal([(MESSAGE, b"")])
    forgetful = careless.encrypt(b"\0\0\0\0\3\0")
    assert honest != forgetful
    with pytest.raises(BadRecord):
        opener.open(forgetful)


@pytest.mark.parametrize("suite", [1, 2])
def test_rekey_changes_the_key_and_keeps_the_number(suite: int) -> None:
    old, new, far = (CipherState(suite, plain("k")) for _ in range(3))
    for cipher in (old, new, far):
        cipher.encrypt(b"")
    new.rekey()
    assert new.n == 1
    sealed = new.encrypt(b"after")
    with pytest.raises(BadRecord):
        old.decrypt(sealed)
    far.rekey()
    assert far.decrypt(sealed) == b"after"


def test_rekey_is_the_published_function_of_the_old_key() -> None:
    old = plain("k")
    expected = AESGCM(old).encrypt(b"\0" * 4 + b"\xff" * 8, bytes(32), None)[:32]
    cipher = CipherState(1, old)
    cipher.rekey()
    assert cipher.encrypt(b"x") == CipherState(1, expected).encrypt(b"x")


@pytest.mark.parametrize("suite", [1, 2])
def test_no_flipped_bit_of_a_record_is_accepted_and_the_genuine_one_still_is(suite: int) -> None:
    receiving = CipherState(suite, plain("k"))
    sealed = CipherState(suite, plain("k")).encrypt(plain("record", 100))
    for bit in range(8 * len(sealed)):
        altered = bytearray(sealed)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadRecord):
            receiving.decrypt(bytes(altered))
    for size in range(len(sealed)):
        with pytest.raises(BadRecord):
            receiving.decrypt(sealed[:size])
    assert receiving.decrypt(sealed) == plain("record", 100)


@pytest.mark.parametrize("suite", [1, 2])
def test_a_tag_covers_the_associated_data(suite: int) -> None:
    sealed = CipherState(suite, plain("k")).encrypt(b"text", b"one")
    with pytest.raises(BadRecord):
        CipherState(suite, plain("k")).decrypt(sealed, b"two")
    assert CipherState(suite, plain("k")).decrypt(sealed, b"one") == b"text"


@pytest.mark.parametrize("suite", [1, 2])
def test_the_last_number_is_used_and_the_one_reserved_for_rekey_is_not(suite: int) -> None:
    sending, receiving = CipherState(suite, plain("k")), CipherState(suite, plain("k"))
    sending.n = receiving.n = 2**64 - 2
    last = sending.encrypt(b"last")
    assert receiving.decrypt(last) == b"last"
    with pytest.raises(BadRecord, match="used up"):
        sending.encrypt(b"one more")
    with pytest.raises(BadRecord, match="used up"):
        receiving.decrypt(last)


def eightfold_is_nothing(u: int) -> bool:
    """Whether eight times the point is the neutral element: three doublings by the curve's own formula, none of the
    library's.
    """
    x, z = u % P25519, 1
    for _ in range(3):
        x, z = (x * x - z * z) ** 2 % P25519, 4 * x * z * (x * x + 486662 * x * z + z * z) % P25519
    return z == 0


def test_the_fourteen_points_are_of_small_order_and_a_usual_one_is_not() -> None:
    assert len(set(SMALL_POINTS)) == 14
    assert all(eightfold_is_nothing(int.from_bytes(point, "little") % (1 << 255)) for point in SMALL_POINTS)
    assert not eightfold_is_nothing(9)


class LaxKey:
    """A library that does not refuse small points by itself."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self.public_key = private.public_key

    def exchange(self, _: object) -> bytes:
        return bytes(32)


def test_a_secret_of_zeros_is_refused_even_where_the_library_would_take_it() -> None:
    lax: Any = LaxKey(key("33" * 32))
    peer = HandshakeState(1, is_initiator=False, prologue=b"p", static=lax, ephemeral=lax)
    peer.read_e(bytes(32))
    with pytest.raises(HandshakeFailed, match="small order"):
        peer.begin_2()


@pytest.mark.parametrize("point", SMALL_POINTS, ids=lambda point: point.hex()[-6:] + point.hex()[:6])
@pytest.mark.parametrize("suite", [1, 2])
def test_a_small_order_ephemeral_key_is_refused_by_both_roles(suite: int, point: bytes) -> None:
    ours, peer = pair(suite)
    peer.read_e(point)
    with pytest.raises(HandshakeFailed, match="small order"):
        peer.begin_2()
    ours.write_e()
    with pytest.raises(HandshakeFailed, match="small order"):
        ours.read_2(point + bytes(48))


class Forger(HandshakeState):
    """A peer that knows the protocol and sends a static key of its choice. It holds no private key for it: X25519 with
    a small point gives zeros.
    """

    point = bytes(32)

    def begin_2(self) -> bytes:
        self.s_public = self.point
        return super().begin_2()

    def begin_3(self) -> bytes:
        self.s_public = self.point
        return super().begin_3()


@pytest.mark.parametrize("point", SMALL_POINTS, ids=lambda point: point.hex()[-6:] + point.hex()[:6])
@pytest.mark.parametrize("suite", [1, 2])
def test_a_small_order_static_key_is_refused_by_both_roles(suite: int, point: bytes) -> None:
    ours, peer = pair(suite)
    Forger.point = point
    forging = [
        Forger(suite, is_initiator=is_initiator, prologue=b"p", static=key("11" * 32), ephemeral=key("22" * 32))
        for is_initiator in (True, False)
    ]
    forging[1].read_e(ours.write_e())
    with pytest.raises(HandshakeFailed, match="small order"):
        ours.read_2(forging[1].begin_2())
    peer.read_e(forging[0].write_e())
    forging[0].read_2(peer.begin_2())
    forging[0].read_payload(peer.write_payload(b""))
    with pytest.raises(HandshakeFailed, match="small order"):
        peer.read_3(forging[0].begin_3())


def test_another_prologue_fails() -> None:
    ours, _ = pair(prologue=b"p")
    _, peer = pair(prologue=b"q")
    peer.read_e(ours.write_e())
    with pytest.raises(HandshakeFailed):
        ours.read_2(peer.begin_2())


@pytest.mark.parametrize("suite", [1, 2])
def test_no_flipped_bit_of_the_static_keys_message_is_accepted(suite: int) -> None:
    _, peer = pair(suite)
    ours, _ = pair(suite)
    peer.read_e(ours.write_e())
    second = peer.begin_2()
    for bit in range(8 * len(second)):
        altered = bytearray(second)
        altered[bit // 8] ^= 1 << bit % 8
        fresh, _ = pair(suite)
        fresh.write_e()
        if bit == 255:
            # X25519 ignores the top bit of a key; the transcript does not, so the tag of `s` fails.
            assert altered[31] == second[31] ^ 0x80
        with pytest.raises(ConvergeError):
            fresh.read_2(bytes(altered))


def test_the_two_directions_have_keys_of_their_own() -> None:
    ours, _ = met(1, is_initiator=True)
    sending, receiving = ours.split()
    with pytest.raises(BadRecord):
        receiving.decrypt(sending.encrypt(b"reflected"))
    assert len(sending.encrypt(b"")) == TAG_BYTES

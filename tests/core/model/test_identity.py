"""Ed25519 identities: ids prove keys, and keys with which anybody could sign are refused."""

from __future__ import annotations

import base64
import hashlib
import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from converge.errors import InvalidKey
from converge.model.identity import Identity, agent_id, check_public_key, is_agent_id, verify

P = 2**255 - 19
TOP = 1 << 255
D = -121665 * pow(121666, -1, P) % P


def encoded(y: int) -> bytes:
    return y.to_bytes(32, "little")


def roots(square: int) -> list[int]:
    """The numbers whose square this is, modulo P."""
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square % P:
        root = root * pow(2, (P - 1) // 4, P) % P
    return [root, P - root] if root * root % P == square % P else []


def small_ys() -> set[int]:
    """The y coordinates of the eight points whose order divides 8, from the curve's equation alone."""
    # Order 1, 2 and 4: (0, 1), (0, -1) and two points with y = 0. Order 8: doubled, y is 0, whose numerator is x^2 +
    # y^2. So y^2 = -x^2 =: s, and the curve -x^2 + y^2 = 1 + d x^2 y^2 becomes d s^2 + 2 s - 1 = 0.
    found = {0, 1, P - 1}
    for root in roots(1 + D):
        s = (root - 1) * pow(D, -1, P) % P
        found |= set(roots(s)) if roots(-s % P) else set()
    return found


SMALL_YS = sorted(small_ys())
SMALL = [encoded(y | top) for y in (*SMALL_YS, P, P + 1) for top in (0, TOP)]
NON_CANONICAL = [encoded(y | top) for y in range(P, 1 << 255) for top in (0, TOP)]


def test_the_curves_equation_gives_fourteen_small_order_encodings() -> None:
    assert len(SMALL_YS) == 5
    assert len(set(SMALL)) == 14


@pytest.mark.parametrize("key", SMALL, ids=lambda key: key.hex()[:8] + key.hex()[-2:])
def test_a_key_of_small_order_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidKey):
        check_public_key(key)
    with pytest.raises(InvalidKey):
        verify(key, bytes(64), b"data")


def test_every_encoding_that_is_not_canonical_is_refused() -> None:
    assert len(NON_CANONICAL) == 38
    for key in NON_CANONICAL:
        with pytest.raises(InvalidKey, match="canonical"):
            check_public_key(key)


def test_a_forgery_that_the_library_accepts_is_refused_here() -> None:
    # Under the neutral element as key, R = neutral and s = 0 verify any message: s B = R + h A. This is why the table
    # is there.
    neutral = encoded(1)
    forged = neutral + bytes(32)
    for message in (b"one", b"another"):
        Ed25519PublicKey.from_public_bytes(neutral).verify(forged, message)
        with pytest.raises(InvalidKey, match="small order"):
            verify(neutral, forged, message)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(InvalidKey, match="32 bytes"):
        check_public_key(bytes([7]) * size)


def test_genuine_keys_are_accepted_and_returned() -> None:
    for number in range(200):
        key = Identity(hashlib.sha256(b"seed %d" % number).digest()).public_key
        assert check_public_key(key) == key


def test_an_id_is_the_hash_of_the_key_under_its_tag() -> None:
    identity = Identity(bytes(range(32)))
    digest = hashlib.sha256(b"converge/id/v1\0" + identity.public_key).digest()
    assert identity.id == agent_id(identity.public_key) == "cv1" + base64.b32encode(digest).decode().lower().strip("=")
    assert len(identity.id) == 55
    assert is_agent_id(identity.id)


def test_an_id_is_known_for_a_known_seed() -> None:
    # The first key of RFC 8032, section 7.1.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    identity = Identity(seed)
    assert identity.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert identity.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cv1",
        "cv1" + "a" * 51,
        "cv1" + "a" * 53,
        "cv2" + "a" * 52,
        "cv1" + "A" * 52,
        "cv1" + "a" * 51 + "1",
        "cv1" + "a" * 52 + "\n",
    ],
)
def test_what_is_not_an_id_is_not_taken_for_one(text: str) -> None:
    assert not is_agent_id(text)


def test_a_signature_verifies_for_its_key_and_its_bytes_only() -> None:
    one, other = Identity(bytes(32)), Identity(bytes([1]) * 32)
    signature = one.sign(b"data")
    assert verify(one.public_key, signature, b"data")
    assert not verify(one.public_key, signature, b"date")
    assert not verify(other.public_key, signature, b"data")
    assert not verify(one.public_key, signature[:63], b"data")
    assert not verify(one.public_key, b"", b"data")
    for bit in range(512):
        altered = bytearray(signature)
        altered[bit // 8] ^= 1 << bit % 8
        assert not verify(one.public_key, bytes(altered), b"data")


def test_a_signature_with_the_groups_order_added_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    identity = Identity(bytes(32))
    signature = identity.sign(b"data")
    again = int.from_bytes(signature[32:], "little") + order
    assert not verify(identity.public_key, signature[:32] + again.to_bytes(32, "little"), b"data")


def test_a_y_without_a_point_verifies_nothing() -> None:
    y = next(y for y in range(2, 100) if not roots((y * y - 1) * pow(D * y * y + 1, -1, P) % P))
    assert not verify(encoded(y), bytes(64), b"data")


def test_an_identity_shows_neither_key_nor_seed() -> None:
    seed = hashlib.sha256(b"secret").digest()
    identity = Identity(seed)
    shown = f"{identity!r} {identity} {[identity]}"
    assert seed.hex() not in shown
    assert repr(seed)[2:-1] not in shown
    assert identity.id in shown
    assert not hasattr(identity, "__dict__")


def test_an_identity_is_drawn_from_the_entropy_that_is_given() -> None:
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return bytes([9]) * count

    assert Identity.generate(entropy).id == Identity(bytes([9]) * 32).id
    assert asked == [32]


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_seed_of_another_length_is_refused_without_showing_it(size: int) -> None:
    seed = bytes([65]) * size
    with pytest.raises(InvalidKey) as caught:
        Identity(seed)
    assert size == 0 or seed.decode() not in str(caught.value)


def test_an_identity_cannot_be_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Identity(bytes(32)))

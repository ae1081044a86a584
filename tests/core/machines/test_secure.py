"""The handshake of two nodes: what it agrees on, and what a third one between them, or a hostile peer, cannot do."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from converge.errors import (
    ChannelError,
    ConvergeError,
    HandshakeFailed,
    HandshakeRefused,
    NetworkMismatch,
    PeerMismatch,
    TlsMismatch,
    VersionMismatch,
)
from converge.machines.noise import HandshakeState
from converge.machines.records import ACCEPT, MESSAGE, PING
from converge.machines.secure import (
    REFUSED_BUSY,
    REFUSED_NETWORK,
    REFUSED_SUITE,
    Agreed,
    Initiator,
    Responder,
    Terms,
    refusal,
)
from converge.model.identity import Identity

NET = hashlib.sha256(b"converge/net/v1\0home").digest()
ALICE, BOB, MALLORY = (Identity(hashlib.sha256(name).digest()) for name in (b"alice", b"bob", b"mallory"))
# The layout as the specification has it, not as the module writes it.
PAYLOAD = struct.Struct(">BBHHQI32s32sH")
P25519 = 2**255 - 19
TOP = 1 << 255
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
BAD_KEYS = [
    (y | top).to_bytes(32, "little")
    for y in (0, 1, P25519 - 1, _Y8, P25519 - _Y8, *range(P25519, TOP))
    for top in (0, TOP)
]
_U8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
SMALL_POINTS = [
    (u | top).to_bytes(32, "little") for u in (0, 1, *_U8, P25519 - 1, P25519, P25519 + 1) for top in (0, TOP)
]


def entropy_of(seed: str) -> Callable[[int], bytes]:
    """A source that gives the same bytes for the same seed, and never the same twice."""
    counter = itertools.count()
    return lambda size: hashlib.shake_256(f"{seed} {next(counter)}".encode()).digest(size)


def terms(identity: Identity, **changes: object) -> Terms:
    return attrs.evolve(Terms(network=NET, identity=identity), **changes)  # type: ignore[arg-type]  # the test's changes are of the right types


def meet(
    ours: Terms | None = None,
    peers: Terms | None = None,
    *,
    suite: int = 1,
    expected: bytes | None = None,
    seed: str = "meet",
) -> tuple[Agreed, Agreed, tuple[bytes, bytes, bytes]]:
    """A whole handshake: what both sides agreed on, and the three frames."""
    dialler = Initiator(ours or terms(ALICE), entropy_of(f"{seed} i"), suite=suite, expected=expected)
    listener = Responder(peers or terms(BOB), entropy_of(f"{seed} r"))
    hello1 = dialler.hello1()
    hello2 = listener.read_hello1(hello1)
    hello3 = dialler.read_hello2(hello2)
    agreed = listener.read_hello3(hello3)
    assert dialler.agreed is not None
    assert listener.agreed is agreed
    return dialler.agreed, agreed, (hello1, hello2, hello3)


@attrs.frozen(kw_only=True)
class Lie:
    """What a hostile peer says, which holds a private node key of its own and follows the protocol otherwise."""

    layout: int = 1
    flags: int = 0
    versions: tuple[int, int] = (1, 1)
    features: int = 0
    message_bytes: int = 1_048_576
    tls_hash: bytes = bytes(32)
    node_key: bytes = MALLORY.public_key
    signer: Identity = MALLORY
    extensions: bytes = b""
    extensions_bytes: int | None = None
    role: bytes | None = None
    tag: bytes = b"converge/hello/v1\0"
    signed_h: bytes | None = None
    signed_static: bytes | None = None
    signature: bytes | None = None

    def payload(self, state: HandshakeState, role: bytes) -> bytes:
        size = len(self.extensions) if self.extensions_bytes is None else self.extensions_bytes
        head = (
            self.layout,
            self.flags,
            *self.versions,
            self.features,
            self.message_bytes,
            self.tls_hash,
            self.node_key,
            size,
        )
        body = PAYLOAD.pack(*head) + self.extensions
        covered = (
            self.tag + (self.role or role) + (self.signed_h or state.h) + (self.signed_static or state.s_public) + body
        )
        return body + (self.signature if self.signature is not None else self.signer.sign(covered))


def state(seed: str, prefix: bytes, *, is_initiator: bool, suite: int = 1) -> HandshakeState:
    keys = [X25519PrivateKey.from_private_bytes(entropy_of(seed)(32)) for _ in range(2)]
    prologue = b"converge/noise/v1\0" + NET + prefix
    return HandshakeState(suite, is_initiator=is_initiator, prologue=prologue, static=keys[0], ephemeral=keys[1])


def prefix_of(suite: int = 1) -> bytes:
    return b"cvh1" + bytes([suite]) + bytes(3) + NET[:8]


def lie_to_the_dialler(lie: Lie, *, ours: Terms | None = None, expected: bytes | None = None) -> Initiator:
    """A dialler that has read what a lying listener said, if it did not raise."""
    dialler = Initiator(ours or terms(ALICE), entropy_of("victim"), expected=expected)
    hello1 = dialler.hello1()
    peer = state("liar", hello1[:16], is_initiator=False)
    peer.read_e(hello1[16:])
    hello2 = peer.begin_2()
    dialler.read_hello2(hello2 + peer.write_payload(lie.payload(peer, b"R")))
    return dialler


def lie_to_the_listener(lie: Lie, *, peers: Terms | None = None) -> Agreed:
    """What a listener agreed on with a lying dialler, if it did not raise."""
    listener = Responder(peers or terms(BOB), entropy_of("victim"))
    liar = state("liar", prefix_of(), is_initiator=True)
    hello2 = listener.read_hello1(prefix_of() + liar.write_e())
    liar.read_2(hello2[:80])
    liar.read_payload(hello2[80:])
    hello3 = liar.begin_3()
    return listener.read_hello3(hello3 + liar.write_payload(lie.payload(liar, b"I")))


def refused_by_both(lie: Lie, error: type[ChannelError], match: str | None = None, **changes: object) -> None:
    with pytest.raises(error, match=match):
        lie_to_the_dialler(lie, ours=terms(ALICE, **changes))
    with pytest.raises(error, match=match):
        lie_to_the_listener(lie, peers=terms(BOB, **changes))


# What an honest handshake gives.


@pytest.mark.parametrize("suite", [1, 2])
def test_both_sides_know_each_other_and_agree(suite: int) -> None:
    ours, peers, frames = meet(
        terms(ALICE, features=0b0110, message_bytes=5_000),
        terms(BOB, features=1 << 63 | 0b0011, message_bytes=900_000),
        suite=suite,
    )
    assert [len(frame) for frame in frames] == [48, 244, 212]
    assert (ours.peer, peers.peer) == (BOB.public_key, ALICE.public_key)
    for agreed in (ours, peers):
        assert (agreed.version, agreed.features, agreed.message_bytes) == (1, 0b0010, 5_000)


@pytest.mark.parametrize("suite", [1, 2])
def test_items_pass_both_ways_after_the_accept(suite: int) -> None:
    ours, peers, _ = meet(suite=suite)
    to_us, to_them = (peers.sealer(), ours.opener()), (ours.sealer(), peers.opener())
    (first,) = to_us[0].seal([(ACCEPT, peers.accept()), (MESSAGE, b"welcome")])
    assert to_us[1].open(first) == [(MESSAGE, b"welcome")]
    for sealer, opener in (to_us, to_them) * 3:
        (frame,) = sealer.seal([(PING, b"p"), (MESSAGE, b"m" * 300)])
        assert opener.open(frame) == [(PING, b"p"), (MESSAGE, b"m" * 300)]
    with pytest.raises(ConvergeError):
        to_them[1].open(to_us[0].seal([(MESSAGE, b"reflected")])[0])


def test_an_accept_of_other_terms_is_refused_by_the_dialler() -> None:
    ours, peers, _ = meet()
    (frame,) = peers.sealer().seal([(ACCEPT, struct.pack(">HQ", 1, 4))])
    with pytest.raises(VersionMismatch):
        ours.opener().open(frame)


def test_the_frames_are_laid_out_as_specified() -> None:
    seen = terms(
        ALICE,
        features=0x0102030405060708,
        message_bytes=0x090A0B,
        tls_hash=b"t" * 32,
        extensions=((7, b"seven"),),
        highest=3,
    )
    dialler = Initiator(seen, entropy_of("layout"), suite=2)
    hello1 = dialler.hello1()
    assert hello1[:16] == b"cvh1\2\0\0\0" + NET[:8]
    peer = state("peer", hello1[:16], is_initiator=False, suite=2)
    peer.read_e(hello1[16:])
    hello2 = peer.begin_2() + peer.write_payload(Lie(tls_hash=b"t" * 32).payload(peer, b"R"))
    hello3 = dialler.read_hello2(hello2)
    peer.read_3(hello3[:48])
    h = peer.h
    plain = peer.read_payload(hello3[48:])
    assert len(hello3) == 212 + 9
    body = PAYLOAD.pack(1, 0, 1, 3, 0x0102030405060708, 0x090A0B, b"t" * 32, ALICE.public_key, 9) + b"\0\7\0\5seven"
    assert plain[:-64] == body
    # Ed25519 has one signature for a key and bytes, so this checks every byte that it covers.
    assert plain[-64:] == ALICE.sign(b"converge/hello/v1\0I" + h + peer.rs + body)


def test_an_honest_liar_is_believed() -> None:
    # Else the tests below would pass for a reason that is not theirs.
    assert lie_to_the_dialler(Lie()).agreed is not None
    assert lie_to_the_listener(Lie()).peer == MALLORY.public_key


def test_no_identity_is_readable_on_the_wire() -> None:
    _, _, frames = meet()
    for identity in (ALICE, BOB):
        assert identity.public_key not in b"".join(frames)


def test_every_handshake_draws_keys_of_its_own() -> None:
    drawn: list[int] = []
    source = entropy_of("one source")

    def entropy(size: int) -> bytes:
        drawn.append(size)
        return source(size)

    firsts = {Initiator(terms(ALICE), entropy).hello1() for _ in range(50)}
    assert len(firsts) == 50
    assert drawn == [32] * 100


# Somebody in between.


def test_a_node_does_not_talk_to_itself() -> None:
    with pytest.raises(PeerMismatch, match="itself"):
        meet(terms(ALICE), terms(ALICE))
    with pytest.raises(PeerMismatch, match="itself"):
        lie_to_the_listener(Lie(node_key=BOB.public_key, signer=BOB))


def test_a_payload_relayed_from_another_handshake_is_refused() -> None:
    # Mallory is dialled by Alice, dials Bob with a transcript of its own, and hands Bob's signed payload on to Alice;
    # and the other way round.
    listener = Responder(terms(BOB), entropy_of("bob"))
    with_bob = state("mallory to bob", prefix_of(), is_initiator=True)
    hello2 = listener.read_hello1(prefix_of() + with_bob.write_e())
    with_bob.read_2(hello2[:80])
    bobs = with_bob.read_payload(hello2[80:])
    with pytest.raises(HandshakeFailed, match="not signed"):
        lie_to_the_dialler(replaying(bobs))
    dialler = Initiator(terms(ALICE), entropy_of("alice"))
    with_alice = state("mallory to alice", prefix_of(), is_initiator=False)
    with_alice.read_e(dialler.hello1()[16:])
    hello2 = with_alice.begin_2()
    hello3 = dialler.read_hello2(hello2 + with_alice.write_payload(Lie().payload(with_alice, b"R")))
    with_alice.read_3(hello3[:48])
    alices = with_alice.read_payload(hello3[48:])
    with pytest.raises(HandshakeFailed, match="not signed"):
        lie_to_the_listener(replaying(alices))


def replaying(payload: bytes) -> Lie:
    layout, flags, lowest, highest, features, message_bytes, tls_hash, node_key, _ = PAYLOAD.unpack(payload[:-64])
    lie = Lie(layout=layout, flags=flags, versions=(lowest, highest), features=features, message_bytes=message_bytes)
    return attrs.evolve(lie, tls_hash=tls_hash, node_key=node_key, signature=payload[-64:])


@pytest.mark.parametrize(
    "lie",
    [
        Lie(node_key=ALICE.public_key),
        Lie(signer=ALICE),
        Lie(signature=bytes(64)),
        Lie(tag=b"converge/desc/v1\0"),
        Lie(signed_h=bytes(32)),
        Lie(signed_static=bytes(31) + b"\1"),
    ],
    ids=[
        "another's name",
        "another's signature",
        "no signature",
        "another domain",
        "another transcript",
        "another static key",
    ],
)
def test_a_spliced_identity_is_refused(lie: Lie) -> None:
    with pytest.raises(HandshakeFailed, match="not signed"):
        lie_to_the_listener(lie)
    with pytest.raises(HandshakeFailed, match="not signed"):
        lie_to_the_dialler(lie, ours=terms(BOB))


def test_a_signature_of_the_other_role_is_refused() -> None:
    with pytest.raises(HandshakeFailed, match="not signed"):
        lie_to_the_dialler(Lie(role=b"I"))
    with pytest.raises(HandshakeFailed, match="not signed"):
        lie_to_the_listener(Lie(role=b"R"))


@pytest.mark.parametrize(
    "lie",
    [
        Lie(layout=0),
        Lie(layout=2),
        Lie(flags=2),
        Lie(flags=0x80),
        Lie(extensions_bytes=1),
        Lie(extensions=b"\0\0\0\0", extensions_bytes=3),
    ],
)
def test_an_unknown_layout_is_refused(lie: Lie) -> None:
    refused_by_both(lie, HandshakeFailed, "layout")


# Networks, suites, refusals.


def test_another_network_is_refused_at_the_first_frame() -> None:
    other = hashlib.sha256(b"converge/net/v1\0away").digest()
    with pytest.raises(NetworkMismatch):
        meet(terms(ALICE, network=other))


def test_a_forged_network_tag_gets_no_further_than_the_second_hello() -> None:
    with pytest.raises(HandshakeFailed):
        meet(terms(ALICE, network=NET[:8] + bytes(24)))
    dialler, listener = (
        Initiator(terms(ALICE, network=bytes(32)), entropy_of("i")),
        Responder(terms(BOB), entropy_of("r")),
    )
    hello1 = dialler.hello1()
    with pytest.raises(HandshakeFailed):
        dialler.read_hello2(listener.read_hello1(hello1[:8] + NET[:8] + hello1[16:]))


@pytest.mark.parametrize(("asked", "altered"), [(1, 2), (2, 1)])
def test_an_altered_suite_ends_the_handshake(asked: int, altered: int) -> None:
    dialler, listener = Initiator(terms(ALICE), entropy_of("i"), suite=asked), Responder(terms(BOB), entropy_of("r"))
    hello1 = dialler.hello1()
    with pytest.raises(HandshakeFailed):
        dialler.read_hello2(listener.read_hello1(hello1[:4] + bytes([altered]) + hello1[5:]))


@pytest.mark.parametrize("position", [5, 6, 7])
def test_a_reserved_byte_that_is_not_zero_is_refused(position: int) -> None:
    hello1 = bytearray(Initiator(terms(ALICE), entropy_of("i")).hello1())
    hello1[position] = 1
    with pytest.raises(HandshakeFailed, match="begin"):
        Responder(terms(BOB), entropy_of("r")).read_hello1(bytes(hello1))


def test_every_unknown_suite_is_refused_before_any_cryptography() -> None:
    def no_entropy(_: int) -> bytes:
        raise AssertionError("keys were drawn for an unknown suite")

    hello1 = Initiator(terms(ALICE), entropy_of("i")).hello1()
    for suite in {*range(256)} - {1, 2}:
        with pytest.raises(VersionMismatch, match=f"suite {suite}"):
            Responder(terms(BOB), no_entropy).read_hello1(hello1[:4] + bytes([suite]) + hello1[5:])


@pytest.mark.parametrize(
    ("reason", "text"), [(REFUSED_NETWORK, "network"), (REFUSED_SUITE, "suite"), (REFUSED_BUSY, "busy"), (99, "99")]
)
def test_a_forged_refusal_lowers_nothing(reason: int, text: str) -> None:
    frame = refusal(reason)
    assert frame == b"cvx1" + struct.pack(">H", reason)
    dialler, listener = Initiator(terms(ALICE), entropy_of("i")), Responder(terms(BOB), entropy_of("r"))
    hello2 = listener.read_hello1(dialler.hello1())
    with pytest.raises(HandshakeRefused, match=text):
        dialler.read_hello2(frame)
    assert dialler.agreed is None
    with pytest.raises(HandshakeFailed, match="out of turn"):
        dialler.read_hello2(hello2)
    # The next attempt asks for what this one asked for.
    assert Initiator(terms(ALICE), entropy_of("i")).hello1() == dialler.hello1()


def test_a_second_hello_that_begins_like_a_refusal_is_none() -> None:
    with pytest.raises(HandshakeFailed):
        Initiator(terms(ALICE), entropy_of("i")).read_hello2(b"cvx1".ljust(244, b"\0"))


# Keys.


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: f"{key[0]:02x}{key[31]:02x}{key[1:31].hex()[:4]}")
def test_a_node_key_of_small_order_or_not_canonical_is_refused(key: bytes) -> None:
    # With the neutral element as R and s = 0, the library would verify this for any transcript under the neutral
    # element as key.
    refused_by_both(
        Lie(node_key=key, signature=(1).to_bytes(64, "little")), HandshakeFailed, "node key is not acceptable"
    )


@pytest.mark.parametrize("point", SMALL_POINTS, ids=lambda point: f"{point[0]:02x}{point[31]:02x}{point[1:3].hex()}")
def test_a_small_point_is_refused_as_ephemeral_and_as_static_key(point: bytes) -> None:
    with pytest.raises(HandshakeFailed, match="small order"):
        Responder(terms(BOB), entropy_of("r")).read_hello1(prefix_of() + point)
    with pytest.raises(HandshakeFailed, match="small order"):
        Initiator(terms(ALICE), entropy_of("i")).read_hello2(point + bytes(212))
    dialler = Initiator(terms(ALICE), entropy_of("i"))
    peer = state("small", prefix_of(), is_initiator=False)
    peer.s_public = point
    peer.read_e(dialler.hello1()[16:])
    with pytest.raises(HandshakeFailed, match="small order"):
        dialler.read_hello2(peer.begin_2() + bytes(164))
    listener = Responder(terms(BOB), entropy_of("r"))
    peer = state("small", prefix_of(), is_initiator=True)
    peer.s_public = point
    hello2 = listener.read_hello1(prefix_of() + peer.write_e())
    peer.read_2(hello2[:80])
    peer.read_payload(hello2[80:])
    with pytest.raises(HandshakeFailed, match="small order"):
        listener.read_hello3(peer.begin_3() + bytes(164))


# The peer itself: who, TLS, versions; in this order.


def test_a_wrong_peer_never_gets_the_third_hello() -> None:
    dialler, listener = (
        Initiator(terms(ALICE), entropy_of("i"), expected=MALLORY.public_key),
        Responder(terms(BOB), entropy_of("r")),
    )
    sent: list[bytes] = []
    asked = f"another node answered: {BOB.id[:16]}..., expected {MALLORY.id[:16]}..."  # as `converge ps` has them
    with pytest.raises(PeerMismatch, match=asked):
        sent.append(dialler.read_hello2(listener.read_hello1(dialler.hello1())))
    assert sent == []
    assert dialler.agreed is None
    assert meet(expected=BOB.public_key)[0].peer == BOB.public_key


HASH, OTHER = b"c" * 32, b"d" * 32


@pytest.mark.parametrize(
    ("ours", "peers", "is_fine"),
    [
        ((HASH, False), (HASH, False), True),
        ((HASH, False), (OTHER, False), False),
        ((bytes(32), False), (HASH, False), False),
        ((HASH, False), (bytes(32), False), False),
        ((HASH, False), (bytes(32), True), True),
        ((HASH, True), (OTHER, False), True),
    ],
    ids=["same", "interception", "stripping by us", "stripping by them", "declared by them", "declared by us"],
)
def test_different_certificates_are_refused_unless_a_side_declared_why(
    ours: tuple[bytes, bool], peers: tuple[bytes, bool], is_fine: bool
) -> None:
    sides = (
        terms(ALICE, tls_hash=ours[0], is_tls_terminated=ours[1]),
        terms(BOB, tls_hash=peers[0], is_tls_terminated=peers[1]),
    )
    if is_fine:
        assert meet(*sides)[0].peer == BOB.public_key
        return
    with pytest.raises(TlsMismatch):
        meet(*sides)
    with pytest.raises(TlsMismatch):
        lie_to_the_listener(Lie(tls_hash=ours[0]), peers=sides[1])


RANGES = [(low, high) for low in range(1, 5) for high in range(low, 5)]


@pytest.mark.parametrize("ours", RANGES)
@pytest.mark.parametrize("peers", RANGES)
def test_the_version_is_the_lower_of_the_highest_if_both_allow_it(
    ours: tuple[int, int], peers: tuple[int, int]
) -> None:
    version = min(ours[1], peers[1])
    sides = terms(ALICE, lowest=ours[0], highest=ours[1]), terms(BOB, lowest=peers[0], highest=peers[1])
    if version >= max(ours[0], peers[0]):
        assert [agreed.version for agreed in meet(*sides)[:2]] == [version, version]
    else:
        with pytest.raises(VersionMismatch):
            meet(*sides)
        with pytest.raises(VersionMismatch):
            lie_to_the_listener(Lie(versions=ours), peers=sides[1])


def test_a_range_of_versions_that_is_upside_down_is_refused() -> None:
    refused_by_both(Lie(versions=(2, 1)), VersionMismatch, lowest=1, highest=3)


@pytest.mark.parametrize("ours", [0, 1, 0b110, 2**64 - 1])
@pytest.mark.parametrize("peers", [0, 1, 0b011, 2**63, 2**64 - 1])
def test_a_feature_holds_only_where_both_have_it(ours: int, peers: int) -> None:
    assert [agreed.features for agreed in meet(terms(ALICE, features=ours), terms(BOB, features=peers))[:2]] == [
        ours & peers
    ] * 2


def extension(kind: int, value: bytes = b"") -> bytes:
    return struct.pack(">HH", kind, len(value)) + value


def test_an_unknown_critical_extension_is_refused_and_any_other_is_passed_on() -> None:
    refused_by_both(Lie(extensions=extension(1) + extension(0x8001, b"x")), VersionMismatch, "0x8001")
    refused_by_both(Lie(extensions=extension(0xFFFF)), VersionMismatch, known=frozenset({0x8001}))
    agreed = lie_to_the_listener(
        Lie(extensions=extension(0x7FFF, b"a") + extension(0x8001, b"b")), peers=terms(BOB, known=frozenset({0x8001}))
    )
    assert agreed.extensions == ((0x7FFF, b"a"), (0x8001, b"b"))


def test_extensions_have_a_limit_and_must_add_up() -> None:
    longest = extension(5, bytes(252))
    assert lie_to_the_listener(Lie(extensions=longest)).extensions == ((5, bytes(252)),)
    assert meet(terms(ALICE, extensions=((5, bytes(252)),)))[1].extensions == ((5, bytes(252)),)
    refused_by_both(Lie(extensions=longest + b"\0"), HandshakeFailed, "bytes")
    for wrong in (b"\0", b"\0\1\0", extension(1, b"abc")[:-1], b"\0\1\xff\xff", extension(1) + b"\0\0\0"):
        refused_by_both(Lie(extensions=wrong), HandshakeFailed, "add up")
    with pytest.raises(HandshakeFailed, match="limit"):
        meet(terms(ALICE, extensions=((5, bytes(253)),)))


def test_the_first_of_several_faults_is_the_one_that_is_named() -> None:
    # Size, key, signature, not oneself, the expected node, TLS, version.
    worst = Lie(node_key=BAD_KEYS[0], signature=bytes(64), tls_hash=HASH, versions=(9, 9))
    refused_by_both(attrs.evolve(worst, extensions=bytes(300)), HandshakeFailed, "bytes")
    refused_by_both(worst, HandshakeFailed, "not acceptable")
    for victim, trial in ((BOB, lie_to_the_listener), (ALICE, lie_to_the_dialler)):
        own = Lie(node_key=victim.public_key, signer=victim, tls_hash=HASH, versions=(9, 9))
        with pytest.raises(HandshakeFailed, match="not signed"):
            trial(attrs.evolve(own, signature=bytes(64)))
        with pytest.raises(PeerMismatch, match="itself"):
            trial(own)
    stranger = Lie(tls_hash=HASH, versions=(9, 9))
    with pytest.raises(PeerMismatch, match="another node"):
        lie_to_the_dialler(stranger, expected=BOB.public_key)
    refused_by_both(stranger, TlsMismatch)
    refused_by_both(stranger, VersionMismatch, tls_hash=HASH)

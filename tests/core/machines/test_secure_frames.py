"""The frames of the handshake: altered, cut, split, recorded, reflected, or garbage, none leads to an agreement."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Callable

import msgspec
import pytest

from converge import codec
from converge.errors import ChannelError, HandshakeFailed
from converge.machines import noise, records, secure
from converge.machines.secure import Initiator, Responder, Terms
from converge.model.identity import Identity

NET = hashlib.sha256(b"converge/net/v1\0home").digest()
ALICE, BOB = (Terms(network=NET, identity=Identity(hashlib.sha256(name).digest())) for name in (b"alice", b"bob"))


def entropy_of(seed: str) -> Callable[[int], bytes]:
    """A source that gives the same bytes for the same seed, and never the same twice."""
    counter = itertools.count()
    return lambda size: hashlib.shake_256(f"{seed} {next(counter)}".encode()).digest(size)


def prefix_of(suite: int = 1) -> bytes:
    return b"cvh1" + bytes([suite]) + bytes(3) + NET[:8]


def meet(seed: str, suite: int = 1) -> tuple[bytes, bytes, bytes]:
    """The three frames of a handshake that both sides accept."""
    dialler, listener = Initiator(ALICE, entropy_of(f"{seed} i"), suite=suite), Responder(BOB, entropy_of(f"{seed} r"))
    hello1 = dialler.hello1()
    hello2 = listener.read_hello1(hello1)
    hello3 = dialler.read_hello2(hello2)
    agreed = listener.read_hello3(hello3)
    assert dialler.agreed is not None
    assert (dialler.agreed.peer, agreed.peer) == (BOB.identity.public_key, ALICE.identity.public_key)
    return hello1, hello2, hello3


# Every bit, every length.


def test_no_altered_first_hello_leads_to_an_agreement() -> None:
    hello1 = Initiator(ALICE, entropy_of("bits i")).hello1()
    for bit in range(8 * len(hello1)):
        dialler, listener = Initiator(ALICE, entropy_of("bits i")), Responder(BOB, entropy_of("bits r"))
        altered = bytearray(hello1)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChannelError):
            dialler.read_hello2(listener.read_hello1(bytes(altered)))
        assert dialler.agreed is None


@pytest.mark.parametrize("suite", [1, 2])
def test_no_altered_second_hello_is_accepted(suite: int) -> None:
    _, hello2, _ = meet("bits", suite)
    for bit in range(8 * len(hello2)):
        dialler = Initiator(ALICE, entropy_of("bits i"), suite=suite)
        altered = bytearray(hello2)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HandshakeFailed):
            dialler.read_hello2(bytes(altered))
        assert dialler.agreed is None


@pytest.mark.parametrize("suite", [1, 2])
def test_no_altered_third_hello_is_accepted(suite: int) -> None:
    hello1, _, hello3 = meet("bits", suite)
    for bit in range(8 * len(hello3)):
        listener = Responder(BOB, entropy_of("bits r"))
        listener.read_hello1(hello1)
        altered = bytearray(hello3)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HandshakeFailed):
            listener.read_hello3(bytes(altered))
        assert listener.agreed is None


def test_no_hello_cut_short_drawn_out_or_split_is_accepted() -> None:
    hello1, hello2, hello3 = meet("bits")
    for size in itertools.chain(range(len(hello1)), range(len(hello1) + 1, 600)):
        with pytest.raises(HandshakeFailed):
            Responder(BOB, entropy_of("bits r")).read_hello1(hello1[:size].ljust(size, b"\0"))
    for size in itertools.chain(range(len(hello2)), range(len(hello2) + 1, 600)):
        dialler = Initiator(ALICE, entropy_of("bits i"))
        with pytest.raises(HandshakeFailed):
            dialler.read_hello2(hello2[:size].ljust(size, b"\0"))
        with pytest.raises(HandshakeFailed, match="out of turn"):
            dialler.read_hello2(hello2[size:])
    for size in itertools.chain(range(len(hello3)), range(len(hello3) + 1, 600)):
        listener = Responder(BOB, entropy_of("bits r"))
        listener.read_hello1(hello1)
        with pytest.raises(HandshakeFailed):
            listener.read_hello3(hello3[:size].ljust(size, b"\0"))
        with pytest.raises(HandshakeFailed, match="out of turn"):
            listener.read_hello3(hello3[size:])


def test_one_failure_closes_even_if_the_genuine_hello_follows() -> None:
    hello1, hello2, hello3 = meet("bits")
    dialler = Initiator(ALICE, entropy_of("bits i"))
    for frame in (hello2[:-1] + b"\0", hello2):
        with pytest.raises(HandshakeFailed):
            dialler.read_hello2(frame)
    listener = Responder(BOB, entropy_of("bits r"))
    listener.read_hello1(hello1)
    for frame in (hello3[:-1] + b"\0", hello3):
        with pytest.raises(HandshakeFailed):
            listener.read_hello3(frame)
    other = Responder(BOB, entropy_of("bits r"))
    with pytest.raises(HandshakeFailed, match="out of turn"):
        other.read_hello3(hello3)
    for frame in (b"garbage", hello1):
        with pytest.raises(HandshakeFailed):
            other.read_hello1(frame)


# Recorded frames.


def test_recorded_hellos_are_never_accepted_again() -> None:
    hello1, hello2, hello3 = meet("recorded")
    source = entropy_of("later")
    for _ in range(300):
        listener = Responder(BOB, source)
        assert listener.read_hello1(hello1) != hello2
        with pytest.raises(HandshakeFailed):
            listener.read_hello3(hello3)
        dialler = Initiator(ALICE, source)
        with pytest.raises(HandshakeFailed):
            dialler.read_hello2(hello2)


def test_a_frame_reflected_to_its_sender_is_refused() -> None:
    dialler, listener = Initiator(ALICE, entropy_of("i")), Responder(BOB, entropy_of("r"))
    hello2 = listener.read_hello1(dialler.hello1())
    with pytest.raises(HandshakeFailed):
        listener.read_hello3(hello2)
    with pytest.raises(HandshakeFailed):
        dialler.read_hello2(dialler.hello1())


# Whatever comes in.

HELLOS = 200_000 if os.environ.get("FULL_TESTS") == "1" else 5_000
"""With `FULL_TESTS=1` two million in all, with those of `test_records.py` and `test_item_fuzz.py`."""


def test_no_decoder_runs_before_the_peer_is_authentic(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("decode", "decode_plain"):
        monkeypatch.setattr(codec, name, lambda *_, name=name, **__: calls.append(name))
    for module in (msgspec.json, msgspec.msgpack):
        monkeypatch.setattr(module, "decode", lambda *_, **__: calls.append("msgspec"))
    fuzzed(seed=3, count=2_000)
    meet("after the garbage")
    assert calls == []
    # The machines hold no reference to one either: they know bytes only.
    for machine in (noise, records, secure):
        assert not {"codec", "msgspec", "json", "decode"} & set(vars(machine))


@pytest.mark.timeout(1_800)
def test_garbage_gives_typed_errors_only() -> None:
    seed = int(os.environ.get("FUZZ_SEED", random.randrange(2**32)))
    assert fuzzed(seed, HELLOS) == HELLOS, f"FUZZ_SEED={seed}"


def fuzzed(seed: int, count: int) -> int:
    """Feed garbage, most of it of the right size, to both sides at every step; count what was refused."""
    source = random.Random(seed)
    refused = 0
    hello1, _, _ = meet("fuzz")
    for number in range(count):
        begun = source.choice([b"", b"cvh1", b"cvx1", prefix_of(), prefix_of(2), source.randbytes(32)])
        frame = begun + source.randbytes(
            max(0, source.choice([0, 6, 48, 212, 244, 300, 512, source.randrange(2_000)]) - len(begun))
        )
        try:
            if number % 3 == 0:
                Initiator(ALICE, entropy_of("i")).read_hello2(frame)
            listener = Responder(BOB, entropy_of("r"))
            if number % 3 == 1:
                listener.read_hello1(hello1)
            else:
                listener.read_hello1(frame)
            # A first hello of the right form is always answered: what it holds is known only from the third.
            listener.read_hello3(frame)
        except ChannelError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"FUZZ_SEED={seed}") from error
    return refused

"""Messages that share a signature: each verifies alone, and all of them cost one verification."""

from __future__ import annotations

import random

import pytest

from converge import Identity
from converge.env import SYSTEM
from converge.errors import BadSignature, ConvergeError, TornRecord
from converge.model import together
from converge.model.descriptor import network_tag
from converge.model.envelope import MessageHeader, pack
from converge.model.together import MOST, TREES, Together, sign_together

NETWORK = network_tag("one")
SENDER = Identity.generate(SYSTEM.entropy)


def bodies(count: int, *, sender: Identity = SENDER, key: Identity = SENDER) -> list[bytes]:
    return [
        pack(MessageHeader(f"{n:032}", sender.id, "to", "life", n + 1, 0, key=key.public_key.hex()), b'"%d"' % n)
        for n in range(count)
    ]


def members(count: int) -> list[bytes]:
    return sign_together(SENDER, NETWORK, bodies(count))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 31, 33, 63, MOST])
def test_each_member_verifies_alone_and_all_of_them_by_one_signature(count: int) -> None:
    all_ = Together(NETWORK)
    for n, member in enumerate(members(count)):
        for receiver in (Together(NETWORK), all_):
            header, payload = receiver.open(member)
            assert (header.id, header.sender, payload) == (f"{n:032}", SENDER.id, b'"%d"' % n)
            assert receiver.verified == 1


def test_members_verify_in_any_order() -> None:
    receiver, all_ = Together(NETWORK), members(MOST)
    random.Random(1).shuffle(all_)
    assert len({receiver.open(member)[0].id for member in [*all_, *all_]}) == MOST
    assert receiver.verified == 1


def test_the_tree_is_that_of_rfc_6962() -> None:
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    hashes = [together._leaf(bytes.fromhex(leaf)) for leaf in leaves]
    assert hashes[0].hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    for count, root in (
        (7, "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
        (8, "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
    ):
        assert together._grown(hashes[:count])[0].hex() == root


@pytest.mark.parametrize("has_others", [False, True])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_no_bit_of_a_member_can_be_changed(count: int, has_others: bool) -> None:
    """But its index, in a tree in which another place has the same way: it says nothing of the message."""
    all_ = members(count)
    member = all_[-1]
    receiver = Together(NETWORK)
    for other in all_[:-1] if has_others else ():
        receiver.open(other)
    for at in range(len(member)):
        for bit in range(0, 8, 3):
            changed = bytearray(member)
            changed[at] ^= 1 << bit
            try:
                found = receiver.open(bytes(changed))
            except ConvergeError:
                continue
            assert at == len(member) - 66 or has_others  # what is beside a known node proves nothing more
            assert found == Together(NETWORK).open(member)


def test_a_member_of_another_tree_network_or_sender_is_refused() -> None:
    one, other = members(4), sign_together(SENDER, NETWORK, bodies(5)[1:])
    receiver, cut = Together(NETWORK), len(bodies(1)[0])
    receiver.open(one[0])
    stranger = Identity.generate(SYSTEM.entropy)
    for forged in (
        bodies(5)[4] + one[3][cut:],  # what others signed, on a message of one's own
        one[3][:cut] + other[3][cut:],
        sign_together(SENDER, network_tag("two"), bodies(2))[0],
        sign_together(stranger, NETWORK, bodies(2))[0],
        sign_together(stranger, NETWORK, bodies(2, key=stranger))[0],
        sign_together(SENDER, NETWORK, bodies(2, sender=stranger))[0],
    ):
        with pytest.raises(BadSignature):
            receiver.open(forged)
    assert receiver.open(one[3])[0].id == f"{3:032}"


def test_what_is_no_member_is_torn() -> None:
    member, receiver = members(4)[1], Together(NETWORK)
    for length in (*range(70), len(member) // 2):
        with pytest.raises((TornRecord, BadSignature)):
            receiver.open(member[:length])
    for index, count in ((4, 4), (0, 0), (0, MOST + 1), (255, 255)):
        with pytest.raises(TornRecord):
            receiver.open(member[:-66] + bytes((index, count)) + member[-64:])


def test_what_is_remembered_of_trees_has_a_bound() -> None:
    receiver = Together(NETWORK)
    for _ in range(TREES + 5):
        receiver.open(sign_together(SENDER, NETWORK, bodies(2))[0])
        receiver.open(sign_together(SENDER, NETWORK, [*bodies(2), *bodies(1)])[0])
    assert len(receiver._known) == 2  # they are the same, so are their signatures
    for n in range(TREES + 5):
        receiver.open(sign_together(SENDER, NETWORK, bodies(2 + n)[-2:])[0])
    assert len(receiver._known) == TREES

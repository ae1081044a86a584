"""Who may speak over a link: only agents whose own signed descriptor names the node at the other end."""

from __future__ import annotations

from typing import cast

import attrs
import pytest

from converge import AgentDescriptor, Identity
from converge.env import SYSTEM
from converge.model.descriptor import SEQUENCE_GREATEST, DiscoveryQuery, sign_descriptor
from converge.services.discovery.directory import Directory
from converge.services.discovery.registry import IdentityRegistry
from converge.services.messages import speakers as module
from converge.services.messages.speakers import Speakers
from converge.services.messages.under_way import Link

NETWORK = "converge"


class Wire:
    """What of a link counts here."""

    def __init__(self, node: Identity) -> None:
        self.peer, self.speakers, self.speakers_bytes = node.public_key, dict[str, int](), 0


def wire(node: Identity) -> Link:
    """Return a link to a node."""
    return cast(Link, Wire(node))


@attrs.frozen
class Place:
    """A node that is shown descriptors, and two that show them."""

    speakers: Speakers
    directory: Directory
    agent: Identity
    one: Identity
    two: Identity

    def signed(self, node: Identity, sequence: int = 1, **more: object) -> bytes:
        descriptor = AgentDescriptor(
            id=self.agent.id,
            public_key=self.agent.public_key.hex(),
            node_key=node.public_key.hex(),
            sequence=sequence,
            **more,  # type: ignore[arg-type]  # names of attributes
        )
        return sign_descriptor(self.agent, descriptor, NETWORK)


def place(trust: str = "allow") -> Place:
    directory = Directory(NETWORK)
    one, two, agent = (Identity.generate(SYSTEM.entropy) for _ in range(3))
    return Place(Speakers(SYSTEM, IdentityRegistry(directory, trust=trust)), directory, agent, one, two)


def test_a_shown_descriptor_gives_the_right_to_speak_and_nothing_else() -> None:
    at = place()
    link, other = wire(at.one), wire(at.one)
    assert not at.speakers.speaks(at.agent.id, link)
    at.speakers.show(link, at.signed(at.one, topics=("news",), pools=("p",), endpoints=("tcp://h:1",)))
    assert at.speakers.speaks(at.agent.id, link)
    assert not at.speakers.speaks(at.agent.id, other)  # another link: it is shown again there
    assert at.directory.query(DiscoveryQuery()) == [] and not at.directory.endpoints_at(at.one.public_key)


@pytest.mark.parametrize("spoil", ["another node's", "signature", "short", "network"])
def test_what_does_not_verify_gives_nothing(spoil: str) -> None:
    at = place()
    link, signed = wire(at.one), at.signed(at.two if spoil == "another node's" else at.one)
    if spoil == "signature":
        signed = bytes([signed[0] ^ 1]) + signed[1:]
    elif spoil == "short":
        signed = signed[:70]
    elif spoil == "network":
        descriptor = AgentDescriptor(
            id=at.agent.id, public_key=at.agent.public_key.hex(), node_key=at.one.public_key.hex(), sequence=1
        )
        signed = sign_descriptor(at.agent, descriptor, "another")
    at.speakers.show(link, signed)
    assert not at.speakers.speaks(at.agent.id, link) and not link.speakers


@pytest.mark.parametrize("seen", ["shown", "listed"])
def test_an_agent_that_moved_speaks_over_its_new_link_only(seen: str) -> None:
    at = place()
    old, new = wire(at.one), wire(at.two)
    at.speakers.show(old, at.signed(at.one, 1))
    if seen == "shown":
        at.speakers.show(new, at.signed(at.two, 2))
    else:
        assert at.directory.offer(at.agent.id, at.signed(at.two, 2))
    assert not at.speakers.speaks(at.agent.id, old) and at.speakers.speaks(at.agent.id, new)
    at.speakers.show(old, at.signed(at.one, 1))  # the old one again
    assert not at.speakers.speaks(at.agent.id, old) and at.speakers.speaks(at.agent.id, new)


def test_a_descriptor_that_is_listed_no_longer_still_lets_its_agent_speak() -> None:
    at = place()
    link = wire(at.one)
    at.directory.offer(at.agent.id, at.signed(at.one, 5))
    at.directory.drop(at.agent.id)  # its lease has ended, or its node stops
    at.speakers.show(link, at.signed(at.one, 5))
    assert at.speakers.speaks(at.agent.id, link)
    at.speakers.show(link, at.signed(at.one, 4))
    assert link.speakers[at.agent.id] == 5


@pytest.mark.parametrize("sequence", [1, SEQUENCE_GREATEST])
def test_an_agent_that_is_gone_speaks_no_more_and_only_its_own_node_says_so(sequence: int) -> None:
    at = place()
    link, stranger = wire(at.one), wire(at.two)
    at.directory.offer(at.agent.id, at.signed(at.one, sequence))
    at.speakers.show(link, at.signed(at.one, sequence))
    at.speakers.gone(stranger, at.agent.id)
    assert at.speakers.speaks(at.agent.id, link)
    at.speakers.gone(link, at.agent.id)
    at.speakers.show(link, at.signed(at.one, sequence))
    assert not at.speakers.speaks(at.agent.id, link) and at.directory.get(at.agent.id) is None


def test_trust_in_what_is_listed_asks_for_both() -> None:
    at = place("listed")
    link = wire(at.one)
    at.speakers.show(link, at.signed(at.one))
    assert not at.speakers.speaks(at.agent.id, link)
    at.directory.offer(at.agent.id, at.signed(at.one))
    assert at.speakers.speaks(at.agent.id, link)
    at.directory.drop(at.agent.id)
    assert at.speakers.speaks(at.agent.id, link)  # it was listed once


def test_what_a_peer_shows_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    at = place()
    link, signed = wire(at.one), at.signed(at.one)
    monkeypatch.setattr(module, "SHOWN_BYTES", len(signed) - 1)
    at.speakers.show(link, signed)
    assert not link.speakers


def test_agents_that_are_gone_or_have_moved_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    at = place()
    link, other = wire(at.one), wire(at.two)
    monkeypatch.setattr(module, "SHOWN_BYTES", 3 * len(at.signed(at.one)))
    for _ in range(10):  # a node that starts and ends agents for as long as its link lives
        one = attrs.evolve(at, agent=Identity.generate(SYSTEM.entropy))
        at.speakers.show(link, one.signed(at.one))
        at.speakers.show(link, one.signed(at.one, 2, topics=("news",)))
        assert at.speakers.speaks(one.agent.id, link)
        at.speakers.gone(link, one.agent.id)
    for number in range(10):
        at.speakers.show(other if number % 2 else link, at.signed(at.two if number % 2 else at.one, number + 1))
    assert link.speakers == {} and link.speakers_bytes == 0
    assert other.speakers_bytes == len(at.signed(at.two, 10))

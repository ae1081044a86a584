"""The directory takes verified descriptors only, the newest of each agent, and lists what is sighted."""

from __future__ import annotations

import os

import attrs
import pytest

from converge.contracts.discovery import Sighting
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery, sign_descriptor
from converge.model.identity import Identity
from converge.services.discovery.directory import Directory

NETWORK = "here"


class Speaker:
    """An agent that describes itself."""

    def __init__(self) -> None:
        self.identity = Identity.generate(os.urandom)
        self.id = self.identity.id

    def descriptor(self, sequence: int = 1, *, topics: tuple[str, ...] = ()) -> AgentDescriptor:
        return AgentDescriptor(id=self.id, public_key=self.identity.public_key.hex(), sequence=sequence, topics=topics)

    def signed(self, sequence: int = 1, *, network: str = NETWORK, topics: tuple[str, ...] = ()) -> bytes:
        return sign_descriptor(self.identity, self.descriptor(sequence, topics=topics), network)


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


def test_a_lower_sequence_is_refused_and_the_newer_descriptor_stays(speaker: Speaker) -> None:
    directory = Directory(NETWORK)
    assert directory.offer(speaker.id, speaker.signed(2, topics=("new",)))
    assert not directory.offer(speaker.id, speaker.signed(1, topics=("old",)))
    assert directory.query(DiscoveryQuery(topics=["new"])) == [speaker.descriptor(2, topics=("new",))]
    assert directory.query(DiscoveryQuery(topics=["old"])) == []
    assert directory.refused == 1


def test_a_lower_sequence_is_refused_also_after_the_agent_was_gone(speaker: Speaker) -> None:
    directory = Directory(NETWORK)
    directory.offer(speaker.id, speaker.signed(2))
    directory.replace([])
    assert not directory.offer(speaker.id, speaker.signed(1))
    assert directory.get(speaker.id) is None
    assert directory.offer(speaker.id, speaker.signed(3))


def test_a_descriptor_signed_for_another_network_is_refused(speaker: Speaker) -> None:
    directory = Directory(NETWORK)
    assert not directory.offer(speaker.id, speaker.signed(network="elsewhere"))
    assert directory.get(speaker.id) is None


def test_a_descriptor_signed_by_another_key_is_refused(speaker: Speaker) -> None:
    directory = Directory(NETWORK)
    assert not directory.offer(speaker.id, sign_descriptor(Speaker().identity, speaker.descriptor(), NETWORK))
    assert len(directory) == 0


def test_an_agent_cannot_put_its_descriptor_under_the_id_of_another(speaker: Speaker) -> None:
    directory, other = Directory(NETWORK), Speaker()
    assert not directory.offer(other.id, speaker.signed())
    forged = attrs.evolve(speaker.descriptor(), id=other.id)
    assert not directory.offer(other.id, sign_descriptor(speaker.identity, forged, NETWORK))
    assert len(directory) == 0


@pytest.mark.parametrize("at", [0, 63, 64, -1])
def test_a_descriptor_with_one_changed_byte_is_refused(speaker: Speaker, at: int) -> None:
    directory, signed = Directory(NETWORK), bytearray(speaker.signed())
    signed[at] ^= 1
    assert not directory.offer(speaker.id, bytes(signed))
    assert len(directory) == 0


def test_one_refused_descriptor_hides_no_other(speaker: Speaker) -> None:
    directory, other = Directory(NETWORK), Speaker()
    directory.replace([Sighting(other.id, (), b"nonsense"), Sighting(speaker.id, (), speaker.signed())])
    assert [one.id for one in directory.query(DiscoveryQuery())] == [speaker.id]


def test_an_agent_that_is_sighted_no_longer_is_found_by_no_query(speaker: Speaker) -> None:
    directory = Directory(NETWORK)
    directory.replace([Sighting(speaker.id, (), speaker.signed(topics=("news",)))])
    assert directory.query(DiscoveryQuery(topics=["news"]))
    directory.replace([])
    assert directory.query(DiscoveryQuery(topics=["news"])) == [] == directory.query(DiscoveryQuery())

"""The registry knows keys by verified descriptors only, pins ids, and follows a key that was rotated, but no forged
rotation.
"""

from __future__ import annotations

import os

import pytest

from converge.errors import BadSignature, InvalidName, InvalidValue, Undeliverable
from converge.model.descriptor import AgentDescriptor, sign_descriptor
from converge.model.identity import ROTATIONS, Identity, predecessors
from converge.net.throttle import ALL_PER_SEC
from converge.services.discovery.directory import Directory
from converge.services.discovery.registry import IdentityRegistry, Trust

NETWORK = "here"


def fresh() -> Identity:
    return Identity.generate(os.urandom)


def rotated(old: Identity) -> Identity:
    return old.succeeded_by(os.urandom(32))


def sees(
    directory: Directory,
    one: Identity,
    *,
    sequence: int = 1,
    node: bytes = b"",
    succession: tuple[str, ...] | None = None,
) -> bool:
    told = one.succession if succession is None else succession
    about = AgentDescriptor(
        id=one.id, public_key=one.public_key.hex(), node_key=node.hex(), sequence=sequence, succession=told
    )
    return directory.offer(one.id, sign_descriptor(one, about, NETWORK))


@pytest.fixture
def directory() -> Directory:
    return Directory(NETWORK)


def test_the_registry_fills_itself_from_verified_descriptors(directory: Directory) -> None:
    registry, one = IdentityRegistry(directory), fresh()
    with pytest.raises(Undeliverable):
        registry.public_key(one.id)
    assert sees(directory, one)
    assert registry.public_key(one.id) == one.public_key
    assert registry.verify(one.id, one.sign(b"tag\0text"), b"tag\0text")
    assert not registry.verify(one.id, fresh().sign(b"tag\0text"), b"tag\0text")


def test_a_node_speaks_for_an_agent_only_if_the_agents_descriptor_says_so_and_for_itself_always(
    directory: Directory,
) -> None:
    registry, one, node, other = IdentityRegistry(directory), fresh(), fresh(), fresh()
    sees(directory, one, node=node.public_key)
    assert registry.is_spoken_for(one.id, node.public_key)
    assert not registry.is_spoken_for(one.id, other.public_key)
    assert registry.is_spoken_for(node.id, node.public_key)
    assert not registry.is_spoken_for(node.id, other.public_key)


@pytest.mark.parametrize(
    ("trust", "admitted", "words"),
    [("drop", False, "are refused"), ("warn", True, "are taken all the same"), ("allow", True, "")],
)
def test_what_becomes_of_a_sender_that_is_not_pinned(
    directory: Directory, caplog: pytest.LogCaptureFixture, trust: str, admitted: bool, words: str
) -> None:
    pinned, other = fresh(), fresh()
    registry = IdentityRegistry(directory, trust=trust, pins=[pinned.id])
    assert [registry.admits(one.id) for one in (pinned, other, other, pinned)] == [True, admitted, admitted, True]
    said = [record for record in caplog.records if record.name == "converge.registry"]
    assert len(said) == (1 if words else 0), "it is said once for each sender"
    assert all(words in record.getMessage() and other.id in record.getMessage() for record in said)


def test_only_an_agents_id_can_be_pinned(directory: Directory) -> None:
    with pytest.raises(InvalidName):
        IdentityRegistry(directory, pins=["WordCounter"])
    with pytest.raises(InvalidValue, match="drop, warn, allow"):
        IdentityRegistry(directory, trust="perhaps")


def test_a_pin_follows_rotation_over_several_keys_at_once(directory: Directory) -> None:
    first = fresh()
    third = rotated(rotated(first))
    registry = IdentityRegistry(directory, trust=Trust.DROP, pins=[first.id])
    assert sees(directory, third)
    assert registry.pins == {third.id}
    assert registry.current(first.id) == third.id
    assert (registry.admits(third.id), registry.admits(first.id)) == (True, False), "the old key is trusted no longer"


def test_a_pin_set_after_the_rotation_was_seen_is_that_of_the_new_key(directory: Directory) -> None:
    old = fresh()
    new = rotated(old)
    sees(directory, new)
    registry = IdentityRegistry(directory)
    registry.pin(old.id)
    assert registry.pins == {new.id}
    registry.unpin(old.id)
    assert registry.pins == set()


def test_a_rotation_that_the_old_key_has_not_signed_moves_no_pin(
    directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    old, thief = fresh(), fresh()
    registry = IdentityRegistry(directory, trust=Trust.DROP, pins=[old.id])
    own_link = rotated(thief).succession[0]
    forged = old.public_key.hex() + own_link[64:]
    for succession in ([forged], [own_link], ["00"], ["zz"], [""], [forged] * 3):
        sees(directory, thief, sequence=2, succession=tuple(succession))
    assert registry.pins == {old.id}
    assert not registry.admits(thief.id)
    assert "was refused" in caplog.text


def test_the_rotation_of_one_agent_cannot_be_copied_into_the_descriptor_of_another(directory: Directory) -> None:
    old, thief = fresh(), fresh()
    registry = IdentityRegistry(directory, trust=Trust.DROP, pins=[old.id])
    sees(directory, thief, succession=rotated(old).succession)
    assert registry.pins == {old.id}


def test_the_first_successor_that_is_seen_counts_and_a_second_one_is_refused(
    directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    old = fresh()
    first, second = rotated(old), rotated(old)
    registry = IdentityRegistry(directory, trust=Trust.DROP, pins=[old.id])
    sees(directory, first)
    sees(directory, second)
    assert registry.pins == {first.id}
    assert "a second successor" in caplog.text


def test_a_long_succession_is_cut_by_its_holder_and_refused_from_others(directory: Directory) -> None:
    one = fresh()
    ids = [one.id]
    for _ in range(ROTATIONS + 3):
        one = rotated(one)
        ids.append(one.id)
    assert predecessors(one.public_key, one.succession) == ids[-2 : -2 - ROTATIONS : -1]
    with pytest.raises(BadSignature, match="at most"):
        predecessors(one.public_key, [*one.succession, one.succession[0]])


def test_strangers_cannot_make_the_registry_grow_without_end(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converge.services.discovery.registry.SUCCESSORS", 3)
    monkeypatch.setattr("converge.services.discovery.registry.WARNED", 3)
    pinned = fresh()
    registry = IdentityRegistry(directory, trust=Trust.WARN, pins=[pinned.id])
    for _ in range(10):
        stranger = fresh()
        sees(directory, rotated(stranger))
        registry.admits(stranger.id)
    assert len(registry._successors) == 3 and len(registry._warned) <= 3
    new = rotated(pinned)
    sees(directory, new)
    assert registry.pins == {new.id}, "what concerns a pin is followed all the same"


@pytest.mark.parametrize("trust", [Trust.WARN, Trust.DROP])
def test_strangers_cannot_flood_the_log(directory: Directory, caplog: pytest.LogCaptureFixture, trust: Trust) -> None:
    registry = IdentityRegistry(directory, trust=trust, monotonic=lambda: 0.0)
    assert {registry.admits(fresh().id) for _ in range(200)} == {trust is Trust.WARN}
    said = [record for record in caplog.records if record.name == "converge.registry"]
    assert 1 <= len(said) <= 4 * ALL_PER_SEC

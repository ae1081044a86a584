"""Descriptors: an agent's own description, signed with its key; and the query that finds them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import attrs

from converge.codec import FIRST, decode, encode
from converge.errors import BadSignature, InvalidValue, SchemaTooNew, TornRecord
from converge.ids import check_name, is_name
from converge.model.identity import Identity, agent_id, verify

_TAG = b"converge/desc/v1\0"
SIGNATURE_BYTES = 64
DESCRIPTOR_BYTES = 16_384
"""The longest signed descriptor: some hundred names, far below a record of the channel."""
SEQUENCE_GREATEST = 2**63 - 1
ENDPOINT_LENGTH = 1_024
"""Characters of an endpoint's URL."""


@attrs.frozen(kw_only=True)
class AgentDescriptor:
    """An agent, as it describes itself.

    Attributes:
        id: Proves `public_key`.
        public_key, node_key: Hex of 32 bytes: the agent's, and that of the node which speaks for it.
        name: For people: the agent's class.
        topics, capabilities, pools: What it works on, what it can do, where it is a member.
        endpoints: URLs of its node; empty if the node only dials.
        lease: Hex; the descriptor is listed while this lease lives.
        sequence: Rises with each new descriptor of the agent: the highest wins.
        issued_at: Store time in microseconds.
        succession: The keys that this one has succeeded, as `Identity.succession`.
    """

    id: str
    public_key: str
    name: str = ""
    topics: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    node_key: str = ""
    endpoints: tuple[str, ...] = ()
    lease: str = ""
    sequence: int = 0
    issued_at: int = 0
    succession: tuple[str, ...] = ()
    v: int = FIRST

    @property
    def node_key_bytes(self) -> bytes:
        """The key of its node; empty: it names none."""
        return bytes.fromhex(self.node_key)

    def check(self) -> None:
        """Raise ValueError for a descriptor that no node makes, whoever signed it."""
        for key in (self.node_key, self.lease):
            if key and not (len(key) == (64 if key is self.node_key else 32) and bytes.fromhex(key).hex() == key):
                raise ValueError(f"{key[:70]!r} is not the hex of a key or a lease")
        if not all(map(is_name, (*self.topics, *self.capabilities, *self.pools))):
            raise ValueError("a topic, capability or pool of it is not a valid name")
        if not all(len(url) <= ENDPOINT_LENGTH and url.isprintable() for url in self.endpoints):
            raise ValueError("an endpoint of it is not a URL")


def _names(what: str, field: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidValue(f"query.{field}", names, "a list of names")
    return tuple(check_name(what, name) for name in names)


def _topics(names: Sequence[str]) -> tuple[str, ...]:
    return _names("topic", "topics", names)


def _capabilities(names: Sequence[str]) -> tuple[str, ...]:
    return _names("capability", "capabilities", names)


def _pool_id(name: str | None) -> str | None:
    return None if name is None else check_name("pool", name)


def _limit(limit: int | None) -> int | None:
    if limit is not None and (type(limit) is not int or limit < 0):
        raise InvalidValue("query.limit", limit, "a whole number of at least 0, or None for all")
    return limit


@attrs.frozen(kw_only=True)
class DiscoveryQuery:
    """Which agents: any of the topics, all of the capabilities, in the pool if one is named. Topics match exactly.

    Attributes:
        limit: At most so many; None: all.

    Raises:
        InvalidName, InvalidValue: What is no name, no list of names, or no number.
    """

    topics: Sequence[str] = attrs.field(default=(), converter=_topics)
    capabilities: Sequence[str] = attrs.field(default=(), converter=_capabilities)
    pool_id: str | None = attrs.field(default=None, converter=_pool_id)
    limit: int | None = attrs.field(default=None, converter=_limit)


def network_tag(network: str) -> bytes:
    """Return the 32 bytes that stand for a network in everything that is signed or authenticated."""
    return hashlib.sha256(b"converge/net/v1\0" + network.encode()).digest()


def sign_descriptor(identity: Identity, descriptor: AgentDescriptor, network: str) -> bytes:
    """Return the signed bytes: a signature, then the descriptor as JSON, which is what it covers.

    Raises:
        InvalidValue: Nobody would accept it.
    """
    payload = encode(descriptor)
    if (size := len(payload) + SIGNATURE_BYTES) > DESCRIPTOR_BYTES:
        raise InvalidValue(
            f"{descriptor.name or 'the agent'}: topics, capabilities, pools",
            "",
            f"fewer or shorter names: a descriptor has at most {DESCRIPTOR_BYTES:,} bytes",
            shown=f"a descriptor of {size:,} bytes",
        )
    return identity.sign(_TAG + network_tag(network) + payload) + payload


def open_descriptor(signed: bytes, network: str) -> AgentDescriptor:
    """Verify the signed bytes, as received, then decode them.

    Raises:
        BadSignature, InvalidKey: They do not verify, or the id is not that of the key.
        TornRecord: They are not a descriptor.
    """
    # The key stands inside what it signs, so this little must be read first; nothing is believed before the signature
    # is.
    descriptor = _read(signed)
    signature, payload = signed[:SIGNATURE_BYTES], signed[SIGNATURE_BYTES:]
    try:
        key = bytes.fromhex(descriptor.public_key)
    except ValueError:
        raise BadSignature("the descriptor's public key is not hex") from None
    if descriptor.public_key != key.hex():
        raise BadSignature("the descriptor's public key is not written as 64 lower-case hex digits")
    if agent_id(key) != descriptor.id:
        raise BadSignature(f"the id {descriptor.id[:12]}... is not that of the descriptor's key")
    if not verify(key, signature, _TAG + network_tag(network) + payload):
        raise BadSignature(f"the descriptor of {descriptor.id[:12]}... is not signed by it for this network")
    if not 0 <= descriptor.sequence <= SEQUENCE_GREATEST:
        raise TornRecord(
            f"descriptor of {descriptor.id[:12]}...",
            f"its sequence is {descriptor.sequence}, outside 0 to {SEQUENCE_GREATEST}",
        )
    return descriptor


def peek_lease(signed: bytes) -> str | None:
    """Return the lease that the signed bytes name, unverified; None if they are no descriptor."""
    try:
        return _read(signed).lease
    except (BadSignature, TornRecord, SchemaTooNew):
        return None


def _read(signed: bytes) -> AgentDescriptor:
    if not SIGNATURE_BYTES < len(signed) <= DESCRIPTOR_BYTES:
        raise BadSignature(
            f"a signed descriptor has {SIGNATURE_BYTES} to {DESCRIPTOR_BYTES} bytes, this one has {len(signed)}"
        )
    return decode(signed[SIGNATURE_BYTES:], AgentDescriptor, "descriptor", may_have_more=True)

"""Postings: which agents have a topic, a capability, a pool; bitmaps are intersected, or the rarest set is searched.

An agent has a slot, a small number. A name that many agents have gets a bitmap of slots when it is first asked for,
kept up from then on: to intersect three bitmaps of 100,000 agents takes some microseconds, three sets of thousands of
members hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from converge.model.descriptor import AgentDescriptor, DiscoveryQuery

FEW = 256
"""Members up to which a name is walked member by member: about what a bitmap of 100,000 slots costs to be read out."""

_Name = tuple[str, str]


class _Posting:
    """The slots of those that have one name."""

    __slots__ = ("bits", "number", "slots")

    def __init__(self) -> None:
        self.slots: set[int] = set()
        self.bits: bytearray | None = None
        self.number: int | None = None  # of `bits`, as long as they have not changed

    def put(self, slot: int) -> None:
        self.slots.add(slot)
        self.number = None
        if self.bits is not None:
            at = slot >> 3
            if at >= len(self.bits):
                self.bits.extend(bytes(at + 1 - len(self.bits) + 64))
            self.bits[at] |= 1 << (slot & 7)

    def remove(self, slot: int) -> None:
        self.slots.discard(slot)
        self.number = None
        if self.bits is not None:
            self.bits[slot >> 3] &= ~(1 << (slot & 7))

    def bitmap(self) -> int:
        if self.number is None:
            if self.bits is None:
                self.bits = bits = bytearray((max(self.slots, default=0) >> 3) + 64)
                for slot in self.slots:
                    bits[slot >> 3] |= 1 << (slot & 7)
            self.number = int.from_bytes(self.bits, "little")
        return self.number


_NOBODY = _Posting()


class Postings:
    """Descriptors by the names that they have."""

    def __init__(self) -> None:
        self._names: dict[_Name, _Posting] = {}
        self._slots: list[AgentDescriptor | None] = []
        self._slot: dict[str, int] = {}
        self._free: list[int] = []

    def add(self, descriptor: AgentDescriptor) -> None:
        """Index a descriptor; the agent has none yet."""
        slot = self._free.pop() if self._free else len(self._slots)
        if slot == len(self._slots):
            self._slots.append(descriptor)
        else:
            self._slots[slot] = descriptor
        self._slot[descriptor.id] = slot
        for name in _names(descriptor):
            posting = self._names.get(name)
            if posting is None:
                posting = self._names[name] = _Posting()
            posting.put(slot)

    def remove(self, descriptor: AgentDescriptor) -> None:
        """Remove the descriptor from the index."""
        slot = self._slot.pop(descriptor.id)
        self._slots[slot] = None
        self._free.append(slot)
        for name in _names(descriptor):
            posting = self._names[name]
            posting.remove(slot)
            if not posting.slots:
                del self._names[name]

    def find(self, query: DiscoveryQuery) -> list[AgentDescriptor]:
        """Return the matching descriptors, in no order."""
        needed = [self._names.get(("capability", str(name)), _NOBODY) for name in query.capabilities]
        if query.pool_id is not None:
            needed.append(self._names.get(("pool", query.pool_id), _NOBODY))
        topics = [self._names.get(("topic", str(name)), _NOBODY) for name in query.topics]
        if len(topics) == 1:
            needed += topics
            topics = []
        if not needed and not topics:
            return [one for one in self._slots if one is not None]
        needed.sort(key=_members)
        slots = self._walk(needed, topics) if needed and len(needed[0].slots) <= FEW else _intersect(needed, topics)
        found = []
        for slot in slots:
            one = self._slots[slot]
            assert one is not None, "a slot that is empty stands in no posting"
            found.append(one)
        return found

    @staticmethod
    def _walk(needed: Sequence[_Posting], topics: Sequence[_Posting]) -> Iterable[int]:
        """Check each member of the rarest name."""
        few = needed[0].slots.intersection(*(posting.slots for posting in needed[1:]))
        return [slot for slot in few if any(slot in topic.slots for topic in topics)] if topics else few


def _members(posting: _Posting) -> int:
    return len(posting.slots)


def _intersect(needed: Sequence[_Posting], topics: Sequence[_Posting]) -> Iterable[int]:
    bitmap = -1
    for posting in needed:
        bitmap &= posting.bitmap()
    if topics:
        union = 0
        for posting in topics:
            union |= posting.bitmap()
        bitmap &= union
    # A text of zeros and ones is the fastest way in Python to read many bits out of a number.
    text, slots = bin(bitmap)[:1:-1], []
    at = text.find("1")
    while at >= 0:
        slots.append(at)
        at = text.find("1", at + 1)
    return slots


def _names(descriptor: AgentDescriptor) -> set[_Name]:
    return {
        *(("topic", name) for name in descriptor.topics),
        *(("capability", name) for name in descriptor.capabilities),
        *(("pool", name) for name in descriptor.pools),
    }

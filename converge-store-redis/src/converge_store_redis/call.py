"""One run of `turn.lua`: its keys and arguments out of batches, take and wakes, and what its answer means.

Arguments go by column, family by family, so that the script hands whole runs of them to one command; a tuple of Python
is looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from converge.contracts.store import ABSENT, LIMITS, Batch, Channel, Check, Conflict, Key, Rest, Take, Taken
from converge.errors import InvalidValue, ValueTooLarge
from converge.model.keys import ALSO, TASK, Family
from converge_store_redis.packing import PACKERS, TAGS, bounds, field, rests_unpacker, tail_of
from converge_store_redis.witness import LASTS_SEC, Witness

_VALUE_BYTES = LIMITS.value_bytes

CALL_OPS, CALL_BYTES = 2_000, 1_048_576
"""The most that one run of the script checks and writes, unless a single batch has more: a server does nothing else
meanwhile, and this takes it some milliseconds.
"""


def parts_of(batches: Sequence[Batch]) -> list[Sequence[Batch]]:
    """Return the batches in runs, in their order, each for a call of its own."""
    sizes = [
        (len(some) + len(pairs) + len(gone), sum([len(value) for _, value in pairs]))
        for some, pairs, gone, _ in batches
    ]
    if sum([ops for ops, _ in sizes]) <= CALL_OPS and sum([size for _, size in sizes]) <= CALL_BYTES:
        return [batches]
    parts: list[Sequence[Batch]] = []
    begin = ops = size = 0
    for at, (its_ops, its_size) in enumerate(sizes):
        if at > begin and (ops + its_ops > CALL_OPS or size + its_size > CALL_BYTES):
            parts.append(batches[begin:at])
            begin, ops, size = at, 0, 0
        ops, size = ops + its_ops, size + its_size
    parts.append(batches[begin:])
    return parts


class Names:
    """The names in Redis of what one network keeps: all with one hash tag, so that a single script may touch all of
    it.
    """

    def __init__(self, network: str) -> None:
        self.prefix = b"{%b}:" % network.encode()
        self.values, self.counter, self.witnesses = self.prefix + b"v", self.prefix + b"r", self.prefix + b"l:"
        self.sets: Mapping[Family, bytes] = {
            family: self.prefix + b"z:" + family.encode() for family in TAGS if family not in ALSO
        }

    def set_of(self, family: Family) -> bytes:
        """Return the sorted set of a family.

        Raises:
            InvalidValue: It is of those that are never scanned, and has none.
        """
        found = self.sets.get(family)
        if found is None:
            raise InvalidValue("range", family, "a family that may be scanned; task and state are read by their ids")
        return found

    def sleepers(self, channel: Channel) -> bytes:
        """Return the sorted set of who sleeps on a channel."""
        return self.prefix + b"s:" + channel.encode()


class Call:
    """The keys and arguments of one run of `turn.lua`."""

    def __init__(self, names: Names, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel]) -> None:
        self._names, self._batches = names, batches
        self._places: dict[Family, int] = {}
        self.keys: list[bytes] = [names.values, names.counter]
        checks: dict[int, Check] = {}  # by identity: what all batches check is one object, and a hash costs more
        checked: list[bytes] = []
        deletes: dict[Family, list[bytes]] = {}
        puts: dict[Family, tuple[list[bytes], list[bytes]]] = {}
        self._windowed: list[int] = []
        windows: list[bytes] = []
        size = deleted = 0
        last_key: Key = ()
        runs: list[Any] = []  # of deletes whose fields are checked: their family, the first check, the last
        for index, (some, pairs, gone, window) in enumerate(batches):
            for check in some:
                if (name := id(check)) not in checks:
                    checks[name] = check
                    last_key = check[0]
                    checked.append(PACKERS[last_key[0]](last_key))
            for key, value in pairs:
                length = len(value)
                if length > _VALUE_BYTES:
                    raise ValueTooLarge(f"the value of {key[0]}", length, _VALUE_BYTES)
                size += length
                group = puts.get(key[0])
                if group is None:
                    group = puts[key[0]] = ([], [])
                group[0].append(checked[-1] if key is last_key else PACKERS[key[0]](key))
                group[1].append(value)
            for key in gone:
                if key is last_key:  # what ends was claimed: its field is sent once
                    at = len(checked)
                    deleted += 1
                    if runs and runs[-1] == at - 1 and runs[-3] is key[0]:
                        runs[-1] = at
                    else:
                        runs += (key[0], at, at)
                    continue
                packed = PACKERS[key[0]](key)
                found = deletes.get(key[0])
                if found is None:
                    deletes[key[0]] = [packed]
                else:
                    found.append(packed)
            if window is not None:
                self._windowed.append(index)
                windows += (_bound(window.at_least), _bound(window.at_most))
        self._checks = list(checks.values())
        written = sum([len(fields) for fields, _ in puts.values()]) + sum([len(fields) for fields in deletes.values()])
        self.is_large = len(batches) > 1 and (len(checked) + deleted + written > CALL_OPS or size > CALL_BYTES)
        """Whether it is to go out in parts, see `parts_of`."""
        runs[::3] = [self._place(family) for family in runs[::3]]
        arguments: list[Any] = [
            *_checks(self._checks, checked),
            len(self._windowed),
            *windows,
            0 if TASK in puts else 1,  # `grows`: new tasks are what a full server takes no more of
            len(batches),
            len(runs) // 3,
            *runs,
        ]
        self._add_writes(arguments, deletes, puts)
        arguments += [0] if take is None else self._take(take)
        arguments.append(len(wake))
        for channel in wake:
            self.keys.append(names.sleepers(channel))
            arguments += (len(self.keys), channel)
        self.arguments = arguments

    def demand(self, witness: Witness) -> None:
        """Have it do nothing where the witness does not show what it must, and else renew it; to be called once."""
        self.keys.append(witness.key)
        self.arguments += (LASTS_SEC, witness.demanded())

    def _add_writes(
        self,
        arguments: list[Any],
        deletes: Mapping[Family, list[bytes]],
        puts: Mapping[Family, tuple[list[bytes], list[bytes]]],
    ) -> None:
        arguments.append(len(deletes))
        for family, fields in deletes.items():
            arguments += (self._place(family), len(fields), *fields)
        arguments.append(len(puts))
        for family, (fields, values) in puts.items():
            # `ready` and `done` have no values: then none are sent.
            arguments += (
                (self._place(family), len(fields), *fields, 1, *values)
                if any(values)
                else (self._place(family), len(fields), *fields, 0)
            )

    def _place(self, family: Family) -> int:
        """Return the place of a family's set in KEYS, which is 1-based; 0 for one that is kept in none."""
        place = self._places.get(family)
        if place is None:
            if family in ALSO:
                return 0
            self.keys.append(self._names.sets[family])
            place = self._places[family] = len(self.keys)
        return place

    def _take(self, take: Take) -> list[Any]:
        first = take.ranges[0].prefix
        self._names.set_of(first[0])
        checks = _checks(take.checks, [PACKERS[key[0]](key) for key, _ in take.checks])
        arguments: list[Any] = [1, *checks, take.limit, self._place(first[0]), self._place(take.to[0])]
        arguments += (
            field(take.to),
            tail_of(take.to, take.tail),
            len(take.also),
            *(TAGS[family] for family in take.also),
            len(take.ranges),
        )
        for range_ in take.ranges:
            arguments += (len(field(range_.prefix)), *bounds(range_.prefix, range_.after))
        return arguments

    def conflicts(self, failed: Sequence[int], missed: Sequence[int]) -> dict[int, Conflict]:
        """Return the conflict of each batch that had one, by its place."""
        wrong = {self._checks[number - 1] for number in failed}
        out = {self._windowed[number - 1] for number in missed}
        found = {}
        for place, batch in enumerate(self._batches):
            keys = tuple(check[0] for check in batch.checks if check in wrong)
            if keys or place in out:
                found[place] = Conflict(keys, place in out)
        return found


def taken(take: Take, revision: int, answer: Sequence[Any]) -> Taken | Conflict:
    """Return what the part of an answer that is about the take means."""
    if answer[0] == 0:
        return Conflict(tuple(take.checks[number - 1][0] for number in answer[1]))
    _, now, packed, found, heads = answer
    prefix = take.ranges[0].prefix
    rests_of: Callable[[bytes], list[Rest]] = rests_unpacker(prefix[0], len(prefix) - 1)
    rests = rests_of(packed)
    width = len(take.also)
    values = [None if raw is None else raw[8:] for raw in found]
    also: Sequence[Sequence[bytes | None]] = (
        list(zip(*(values[at::width] for at in range(width)), strict=True)) if width else [()] * len(rests)
    )
    return Taken(
        revision if rests else 0, rests, also, [rests_of(head)[0] if head else None for head in heads], int(now)
    )


def _checks(checks: Sequence[Check], fields: Sequence[bytes]) -> list[Any]:
    """Return the checks as arguments: the fields, then how many in a row are expected at one revision, and it."""
    arguments: list[Any] = [len(checks), *fields]
    for revision, run in groupby([revision for _, revision in checks]):
        arguments += (len(list(run)), b"" if revision == ABSENT else revision.to_bytes(8, "big"))
    return arguments


def _bound(at: int | None) -> bytes:
    return b"" if at is None else b"%d" % at

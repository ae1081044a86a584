"""Which batches may go out in one call of the store, and which must wait for the call before."""

from __future__ import annotations

from collections.abc import Sequence

from converge.contracts.store import LIMITS, Batch, Key, Take

FEW = 8
"""So many batches of a feed, each the end of one task, fit into a call: a result is at most a mebibyte."""


def split(batches: Sequence[Batch], take: Take | None) -> list[list[int]]:
    """Return the indexes of the batches in groups that may go out in one call each; the take goes with the last.

    Within a group no batch writes a key that another reads or writes; in the last one no batch deletes or checks a key
    of the take's family or writes a key that the take checks.
    """
    if _is_one_group(batches, take):
        return [list(range(len(batches)))]
    groups: list[list[int]] = [[]]
    reads: list[set[Key]] = [set()]
    writes: list[set[Key]] = [set()]
    sizes = [0]
    last_touched = -1  # the last group that must go out before the take
    for index, batch in enumerate(batches):
        checked = {key for key, _ in batch.checks}
        written = {key for key, _ in batch.puts}
        written.update(batch.deletes)
        at = len(groups) - 1
        while (
            at >= 0
            and writes[at].isdisjoint(checked)
            and writes[at].isdisjoint(written)
            and reads[at].isdisjoint(written)
        ):
            at -= 1
        at += 1  # after the last group that it collides with
        operations, size = len(batch.puts) + len(batch.deletes), sum(len(value) for _, value in batch.puts)
        while (
            at < len(groups)
            and groups[at]
            and not (
                len(groups[at]) < LIMITS.batches
                and len(writes[at]) + operations <= LIMITS.call_ops
                and sizes[at] + size <= LIMITS.call_bytes
            )
        ):
            at += 1
        if at == len(groups):
            groups.append([])
            reads.append(set())
            writes.append(set())
            sizes.append(0)
        sizes[at] += size
        groups[at].append(index)
        reads[at] |= checked
        writes[at] |= written
        if take is not None and _touches(checked, written, batch, take):
            last_touched = max(last_touched, at)
    if last_touched == len(groups) - 1 and take is not None and groups[-1]:
        groups.append([])
    return groups


def fits(batches: Sequence[Batch]) -> bool:
    """Return whether batches that touch no key of each other may go out in one call; a few always may."""
    count = len(batches)
    return count <= FEW or (
        count <= LIMITS.batches
        and sum(len(batch[1]) + len(batch[2]) for batch in batches) <= LIMITS.call_ops
        and sum(len(put[1]) for batch in batches for put in batch[1]) <= LIMITS.call_bytes
    )


def _is_one_group(batches: Sequence[Batch], take: Take | None) -> bool:
    """Return whether all batches may go out in one call with the take: the usual case, found without sets."""
    if len(batches) > LIMITS.batches:
        return False
    family = take.ranges[0].prefix[0] if take is not None and take.ranges else None
    owners: dict[Key, int] = {}
    size = 0
    for index, batch in enumerate(batches):
        for key, value in batch.puts:
            size += len(value)
            if owners.setdefault(key, index) != index:
                return False
        for key in batch.deletes:
            if key[0] is family or owners.setdefault(key, index) != index:
                return False
    if len(owners) > LIMITS.call_ops or (size > LIMITS.call_bytes and len(batches) > 1):
        return False
    for index, batch in enumerate(batches):
        for key, _ in batch.checks:
            if key[0] is family or owners.get(key, index) != index:
                return False
    return take is None or not any(key in owners for key, _ in take.checks)


def _touches(checked: set[Key], written: set[Key], batch: Batch, take: Take) -> bool:
    family = take.ranges[0].prefix[0] if take.ranges else None
    if any(key[0] is family for key in batch.deletes) or any(key[0] is family for key in checked):
        return True
    return any(key in written for key, _ in take.checks)

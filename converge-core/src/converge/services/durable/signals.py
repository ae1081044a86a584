"""Signals to tasks, and the ends of children, which resume whoever waits for them: many at a time, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from converge.codec import decode, encode
from converge.contracts.store import ABSENT, Batch, Check, Committed, Entry
from converge.errors import ConvergeError, NoSuchTask, SchemaTooNew, StoreError, TooManyRecords, TornRecord
from converge.ids import id_text
from converge.machines.durable import SIGNAL_KEYS, Parts, Signal, Signals, resume
from converge.machines.task import is_terminal
from converge.model.keys import ENDED, KEPT, LATER, SIGNAL, SIGNALS, STATE, TASK, TOLD
from converge.model.task import DURABLE, Spec, State
from converge.services.durable.limits import SIGNALS_UNREAD
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import count_all, get_all, read_all
from converge.services.store.patience import attempts
from converge.services.store.reads import Ask, Rounds
from converge.services.tasks.surroundings import lane_wakes, lanes_seen
from converge.services.tasks.torn import set_parked_aside

SIGNALLED_TOGETHER = 200
"""Signals of one round, and ends of children that are told in one batch."""


SIGNALLED_BYTES = 4 * 1_048_576
"""Bytes of the payloads of one batch: a store whose server bounds its packets takes it."""


class Sent(NamedTuple):
    """A signal on its way."""

    id: bytes
    name: str
    payload: bytes
    key: str


class _Target(NamedTuple):
    """A task that is signalled, as it was read; `place` is the revision at which it is parked."""

    spec: Spec
    revision: int
    state: State | None
    state_revision: int
    signals: Signals
    signals_revision: int
    place: int | None


class SignalBox:
    """Sends signals, and tells parents of the ends of their children."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._rounds = Rounds(self._round, SIGNALLED_TOGETHER, is_whole=True)

    async def send(self, sent: Sent) -> bool:
        """Store the signal, and resume its task if that waits for it; return False if the task has ended.

        Raises:
            NoSuchTask: There is none.
            TooManyRecords: It has as many as it may.
            StoreError: As `Store.commit`; with a key it is safe to send it again.
        """
        await self._handle.require_format(DURABLE)
        return bool(await self._rounds.ask(sent))

    async def _round(self, asks: Sequence[Ask[Sent]]) -> None:
        left = list(asks)
        async for _ in attempts(self._handle.env):
            by_task: dict[bytes, list[Ask[Sent]]] = {}
            for ask in left:
                by_task.setdefault(ask.request.id, []).append(ask)
            targets = await self._read(list(by_task))
            batches: list[Batch] = []
            sent: list[Sequence[Ask[Sent]]] = []
            wake, stateless = set[str](), set[bytes]()
            lanes = await lanes_seen(self._handle, [one.spec for one in _parked(targets).values()])
            now = await self._handle.now()
            for id_, asked in by_task.items():
                target = targets.get(id_)
                if isinstance(target, StoreError):
                    await set_parked_aside(self._handle, id_, target)
                    _answer(asked, False, target)
                    continue
                if target is None or is_terminal(target.state):
                    _answer(asked, False, None if target is not None else NoSuchTask(id_text(id_)))
                    continue
                new = await self._accepted(id_, target, asked)
                if not new:
                    continue
                parts = self._parts(id_, target, new, now)
                names = {ask.request.name for ask in new}
                waits = target.state.wait.names if target.state is not None and target.state.wait is not None else ()
                if target.place is not None and target.state is not None and names & set(waits):
                    if not lanes.may_step(target.spec):
                        continue
                    lane = lanes.of(target.spec)
                    _add(parts, resume(id_, target.spec, target.state, target.place, lane, now))
                    wake |= lane_wakes(target.spec, lane)
                batches.append(Batch(*parts))
                sent.append(new)
                if target.state is None:
                    stateless.add(id_)
            if batches:
                outcomes = await (await self._handle.commits()).commit(batches, wake=wake)
                stored = [(some, one) for some, one in zip(sent, outcomes, strict=True) if isinstance(one, Committed)]
                at = {some[0].request.id: one.revision for some, one in stored}
                ended = await self._ended_before({id_: at[id_] for id_ in at.keys() & stateless})
                for some, _ in stored:
                    _answer(some, some[0].request.id not in ended)
            left = [ask for ask in left if not ask.done]
            if not left:
                return

    async def _ended_before(self, at: Mapping[bytes, int]) -> set[bytes]:
        """Return which of the tasks ended before these revisions, none of which had a state: that a key is absent
        cannot be checked where it is not put.
        """
        try:
            entries = await get_all(self._handle.store, [STATE(id_) for id_ in at]) if at else ()
            earlier = [one for one in entries if one is not None and one.revision < at[one.key[1]]]
            return {one.key[1] for one in earlier if is_terminal(decode(one.value, State, id_text(one.key[1])))}
        except StoreError:  # the signals are stored: an error would say that they are not
            return set()

    async def _read(self, ids: Sequence[bytes]) -> dict[bytes, _Target | StoreError]:
        """Read the tasks: their records and signals first, then whether they are parked. Errors are returned."""
        store = self._handle.store
        entries = await get_all(store, [family(id_) for id_ in ids for family in (TASK, STATE, SIGNALS)])
        targets: dict[bytes, _Target | StoreError] = {}
        for at, id_ in enumerate(ids):
            task, raw, box = entries[3 * at : 3 * at + 3]
            if task is not None:
                try:
                    targets[id_] = _target(id_text(id_), task, raw, box)
                except (TornRecord, SchemaTooNew) as error:
                    targets[id_] = error
        parked = _parked(targets)
        places = await get_all(store, [LATER(one.state.due, id_) for id_, one in parked.items() if one.state])
        for (id_, one), found in zip(parked.items(), places, strict=True):
            if found is None or found.revision != one.place:
                targets[id_] = one._replace(place=None)  # it was resumed, and has not run since
        return targets

    async def _accepted(self, id_: bytes, target: _Target, asks: Sequence[Ask[Sent]]) -> list[Ask[Sent]]:
        """Return those that are new, as many as a batch takes; answer repeats, and those for which there is no room."""
        keys = set(target.signals.keys)
        unread = target.signals.next - target.signals.got
        is_full = len(keys) >= SIGNAL_KEYS  # older keys are those of unread signals alone
        if unread and is_full and any(ask.request.key and ask.request.key not in keys for ask in asks):
            pages = await read_all(self._handle.store, SIGNAL(id_))
            try:
                keys |= {decode(entry.value, Signal, id_text(id_)).key for entry in pages} - {""}
            except (TornRecord, SchemaTooNew) as unread_error:
                _answer(asks, False, unread_error)
                return []
        new: list[Ask[Sent]] = []
        left = SIGNALLED_BYTES
        for ask in asks:
            left -= len(ask.request.payload)
            if left < 0 and new:
                break  # the others go out next
            if ask.request.key and ask.request.key in keys:
                _answer([ask], True)
            elif unread + len(new) >= SIGNALS_UNREAD:
                text = f"task {id_text(id_)} has {SIGNALS_UNREAD:,} signals that it has not consumed, the limit"
                error = TooManyRecords(text)
                _answer([ask], False, error)
            else:
                keys.add(ask.request.key)
                new.append(ask)
        return new

    def _parts(self, id_: bytes, target: _Target, asks: Sequence[Ask[Sent]], now: int) -> Parts:
        signals = target.signals
        keys = (*signals.keys, *(ask.request.key for ask in asks if ask.request.key))[-SIGNAL_KEYS:]
        new = msgspec.structs.replace(signals, next=signals.next + len(asks), keys=keys)
        checks: list[Check] = [(TASK(id_), target.revision), (SIGNALS(id_), target.signals_revision)]
        if target.state is not None:  # else see `_ended_before`
            checks.append((STATE(id_), target.state_revision))
        parts: Parts = (checks, [(SIGNALS(id_), encode(new))], [])
        if target.signals_revision == ABSENT:
            parts[1].append((KEPT(id_), b""))
        for number, ask in enumerate(asks, signals.next):
            sent = ask.request
            signal = Signal(sent.name, msgspec.Raw(sent.payload), sent.key, now)
            parts[1].append((SIGNAL(id_, number), encode(signal)))
        return parts

    async def tell(self, ends: Mapping[bytes, Sequence[bytes]]) -> int:
        """Tell parents that these children have ended: resume those that wait for so many. Return how many were told.

        Raises:
            StoreError: As `Store.commit`; what was not told is told by the next call.
        """
        targets = await self._read(list(ends))
        parked = _parked(targets)
        lanes = await lanes_seen(self._handle, [one.spec for one in parked.values()])
        counts = await self._ended(list(parked))
        now = await self._handle.now()
        batches: list[Batch] = []
        wake: set[str] = set()
        told: list[int] = []
        for parent, children in ends.items():
            keys = [TOLD(parent, child) for child in children]
            target = targets.get(parent)
            if target is None:
                batches.append(Batch((), (), [*keys, *(ENDED(parent, child) for child in children)]))
            elif isinstance(target, StoreError):
                await set_parked_aside(self._handle, parent, target)
                if isinstance(target, SchemaTooNew):
                    continue
                batches.append(Batch((), (), keys))
            elif is_terminal(target.state):
                batches.append(Batch((), (), keys))
            else:
                # Put again, so that a parent which is about to wait, and has not seen these ends, looks again.
                parts: Parts = (
                    [(TASK(parent), target.revision), (SIGNALS(parent), target.signals_revision)],
                    [(SIGNALS(parent), encode(target.signals))],
                    keys,
                )
                state = target.state
                need = state.wait.need if state is not None and state.wait is not None else 0
                if target.place is not None and state is not None and 0 < need <= counts.get(parent, 0):
                    if not lanes.may_step(target.spec):
                        continue
                    lane = lanes.of(target.spec)
                    _add(parts, resume(parent, target.spec, state, target.place, lane, now))
                    wake |= lane_wakes(target.spec, lane)
                batches.append(Batch(*parts))
            told.append(len(keys))
        outcomes = await (await self._handle.commits()).commit(batches, wake=wake)
        return sum(count for count, outcome in zip(told, outcomes, strict=True) if isinstance(outcome, Committed))

    async def _ended(self, parents: Sequence[bytes]) -> dict[bytes, int]:
        if not parents:
            return {}
        counts = await count_all(self._handle.store, [ENDED(parent) for parent in parents])
        return dict(zip(parents, counts, strict=True))


def _target(text: str, task: Entry, raw: Entry | None, box: Entry | None) -> _Target:
    state = None if raw is None else decode(raw.value, State, text)
    place = raw.revision if raw is not None and state is not None and state.wait is not None else None
    signals = Signals() if box is None else decode(box.value, Signals, text)
    revision = box.revision if box is not None else ABSENT
    state_revision = raw.revision if raw is not None else ABSENT
    return _Target(decode(task.value, Spec, text), task.revision, state, state_revision, signals, revision, place)


def _parked(targets: Mapping[bytes, _Target | StoreError]) -> dict[bytes, _Target]:
    return {id_: one for id_, one in targets.items() if isinstance(one, _Target) and one.place is not None}


def _add(parts: Parts, more: Parts) -> None:
    parts[0].extend(more[0])
    parts[1].extend(more[1])
    parts[2].extend(more[2])


def _answer(asks: Sequence[Ask[Sent]], answer: bool, error: ConvergeError | None = None) -> None:
    for ask in asks:
        ask.answer, ask.error, ask.done = answer, error, True

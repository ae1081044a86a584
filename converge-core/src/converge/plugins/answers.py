"""What a backend of somebody else's answers, looked at where it comes in: another shape than the contract says is its
plugin's mistake, and never an error of Converge's own a few calls later.

The packages of this project are not looked at: their tests hold them to the contract, so their calls cost nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import chain
from types import NoneType
from typing import Any

import attrs

from converge.contracts.discovery import Changes, Discovery, Reader, Sighting
from converge.contracts.store import Committed, Conflict, Entry, Inspection, Store, Take, Taken, Turned
from converge.contracts.transport import Channel, Listener, Transport
from converge.errors import BadRecord
from converge.foreign import name_of, text_of
from converge.plugins.blame import BrokenContract
from converge.plugins.found import Found

Wrong = Callable[..., bool]
"""`wrong(answer, *arguments of the call)`: whether the answer has another shape than the contract says."""


@attrs.frozen
class Whose:
    """Whose answers are looked at: the plugin, and how a text about its mistakes begins."""

    found: Found
    text: str
    is_channel: bool = False

    def within(self, call: str) -> Whose:
        """Return the same, of what a call of its gives."""
        return Whose(self.found, f"{self.text}: its {call}")

    def broke(self, mistake: str) -> Exception:
        """Return the error to raise for a mistake. What a channel gives has come from a peer, and ends that alone."""
        text = f"{self.text}: {mistake}"
        return BadRecord(text) if self.is_channel else BrokenContract(self.found, text)


Entering = Callable[[Whose, Callable[..., Any], type[Any]], Callable[..., AbstractAsyncContextManager[Any]]]
"""Makes of a call that gives a context manager one whose manager is entered with the same care."""


def look_at(opened: object, whose: Whose, entering: Entering) -> None:
    """Look at all that a store, transport, listener, channel, discovery or reader answers from now on.

    Raises:
        BrokenContract, or BadRecord of a channel: Now, if one of its attributes has another type than the contract
            says. Later, out of a call of its: it cannot be called or awaited as the contract says, or answered
            something of another shape.
    """
    if isinstance(opened, Channel):
        whose = attrs.evolve(whose, is_channel=True)
    for kind, (attributes, calls) in _CONTRACTS.items():
        if isinstance(opened, kind):
            _check_attributes(opened, whose, attributes)
            for name, (wrong, expected) in calls.items():
                _look(opened, name, _awaited(whose, name, getattr(opened, name), wrong, expected))
            break
    if isinstance(opened, Store):
        _look(opened, "reopen", entering(whose.within("reopen"), opened.reopen, Store))
        _look(opened, "watch", _iterated(whose, "watch", opened.watch))
    elif isinstance(opened, Transport):
        _look(opened, "listen", entering(whose.within("listen"), opened.listen, Listener))
        _look(opened, "connect", _giving(whose, "connect", opened.connect, Channel, entering))
    elif isinstance(opened, Listener):
        _look(opened, "accept", _giving(whose, "accept", opened.accept, Channel, entering))
    elif isinstance(opened, Discovery):
        _look(opened, "watch", _iterated(whose, "watch", opened.watch))
        _look(opened, "reader", _reading(whose, opened.reader, entering))
    elif isinstance(opened, Reader):
        _look(opened, "hints", _iterated(whose, "hints", opened.hints))


def mistake(opened: object, name: str, answer: Any, *args: Any, **kwargs: Any) -> str:
    """Return what is wrong with the shape of an answer of a backend's call, for its author; empty if nothing is."""
    for kind, (_, calls) in _CONTRACTS.items():
        if isinstance(opened, kind) and name in calls:
            wrong, expected = calls[name]
            return f"`{name}` answered {_shown(answer)}, expected {expected}" if wrong(answer, *args, **kwargs) else ""
    return ""


def _look(opened: object, name: str, call: Callable[..., Any]) -> None:
    """Put a call in the place of one of an object, which may be frozen, and may be given twice."""
    if not getattr(getattr(opened, name), "looks", False):
        call.looks = True  # type: ignore[attr-defined]  # any function takes one
        object.__setattr__(opened, name, call)


def _check_attributes(
    opened: object, whose: Whose, attributes: Mapping[str, type[Any] | tuple[type[Any], ...]]
) -> None:
    for name, kinds in attributes.items():
        value = getattr(opened, name, None)
        if not isinstance(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            raise whose.broke(f"its {name} is {_shown(value)}, expected {wanted}")


def _awaited(whose: Whose, name: str, call: Callable[..., Any], wrong: Wrong, expected: str) -> Callable[..., Any]:
    async def looked_at(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = await call(*args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # it had begun
            mistake = f"its {name} cannot be called or awaited as the contract says: {text_of(error)}"
            raise whose.broke(mistake) from error
        if wrong(answer, *args, **kwargs):
            raise whose.broke(f"its {name} answered {_shown(answer)}, expected {expected}")
        return answer

    return looked_at


def _giving(
    whose: Whose, name: str, call: Callable[..., Any], wanted: type[Any], entering: Entering
) -> Callable[..., Any]:
    """Return a call whose answer is looked at in its turn."""
    asked = _awaited(whose, name, call, lambda answer, *_, **__: not isinstance(answer, wanted), f"a {wanted.__name__}")

    async def looked_at(*args: Any, **kwargs: Any) -> Any:
        answer = await asked(*args, **kwargs)
        look_at(answer, whose, entering)
        return answer

    return looked_at


def _reading(whose: Whose, call: Callable[[], Any], entering: Entering) -> Callable[[], Any]:
    def looked_at() -> Any:
        answer = call()
        if not isinstance(answer, Reader):
            raise whose.broke(f"its reader answered {_shown(answer)}, expected a Reader (D-7)")
        look_at(answer, whose, entering)
        return answer

    return looked_at


def _iterated(whose: Whose, name: str, call: Callable[..., Any]) -> Callable[..., AsyncIterator[Any]]:
    def looked_at(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        answer: AsyncIterator[Any] = call(*args, **kwargs)
        if not (hasattr(answer, "__anext__") and hasattr(answer, "aclose")):
            if hasattr(answer, "close"):
                answer.close()  # a coroutine, which nobody will await
            raise whose.broke(
                f"its {name} answered {_shown(answer)}, expected an async generator: async def, with yield"
            )
        return answer

    return looked_at


def _shown(value: object) -> str:
    """Return what was answered, by its type; of a collection also what the first odd member is for sure: its type."""
    kind = name_of(type(value))
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        members = dict.fromkeys(name_of(type(one)) for one in value)
        return f"{kind} of {len(value)}" + (f" ({', '.join(list(members)[:3])})" if members else "")
    text = text_of(value)
    return kind if value is None or len(text) > 40 else f"{kind} {text}"


def _no_list(answer: Any) -> bool:
    kind = type(answer)
    if kind is list or kind is tuple:
        return False
    return isinstance(answer, str | bytes | bytearray) or not isinstance(answer, Sequence)


def _any_but(kinds: type[Any] | tuple[type[Any], ...], some: Iterable[Any]) -> bool:
    """Return whether one is of none of these classes; what a node does for each task costs it no bytecode here."""
    return any(not issubclass(kind, kinds) or kind is bool for kind in set(map(type, some)))


def _no_list_of(kinds: type[Any] | tuple[type[Any], ...], answer: Any) -> bool:
    return _no_list(answer) or _any_but(kinds, answer)


def _no_entries(answer: Any, *or_none: type[None]) -> bool:
    if _no_list_of((Entry, *or_none), answer):
        return True
    fields = zip(*filter(None, answer), strict=False)
    return any(_any_but(kind, some) for kind, some in zip((tuple, bytes, int), fields, strict=False))


def _wrong_get(answer: Any, keys: Sequence[Any], *_: Any, **__: Any) -> bool:
    return _no_entries(answer, NoneType) or len(answer) != len(keys)


def _wrong_scan(answer: Any, ranges: Sequence[Any], *_: Any, **__: Any) -> bool:
    return _no_list(answer) or len(answer) != len(ranges) or any(map(_no_entries, answer))


def _wrong_commit(answer: Any, batches: Sequence[Any], *_: Any, **__: Any) -> bool:
    if _no_list_of((Committed, Conflict), answer) or len(answer) != len(batches):
        return True
    if set(map(type, answer)) == {Committed}:
        return _any_but(int, chain.from_iterable(answer))
    return any(_no_conflict(one) if isinstance(one, Conflict) else _any_but(int, one) for one in answer)


def _no_conflict(answer: Any) -> bool:
    return not isinstance(answer, Conflict) or _no_list(answer.keys) or not isinstance(answer.window, bool)


def _wrong_turn(answer: Any, batches: Sequence[Any], take: Take | None = None, *_: Any, **__: Any) -> bool:
    if not isinstance(answer, Turned) or _wrong_commit(answer.outcomes, batches):
        return True
    if take is None:
        return answer.taken is not None
    return _wrong_taken(answer.taken, take) if isinstance(answer.taken, Taken) else _no_conflict(answer.taken)


def _wrong_taken(taken: Taken, take: Take) -> bool:
    return (
        _any_but(int, (taken.revision, taken.time))
        or _no_list_of(tuple, taken.rests)
        or _no_list_of((tuple, NoneType), taken.heads)
        or _no_list_of((tuple, list), taken.also)
        or (len(taken.also), len(taken.heads)) != (len(taken.rests), len(take.ranges))
        or not set(map(len, taken.also)) <= {len(take.also)}
        or _any_but((bytes, NoneType), chain.from_iterable(taken.also))
    )


def _no_whole_number(answer: Any, *_: Any, **__: Any) -> bool:
    return _any_but(int, (answer,))


def _wrong_count(answer: Any, prefixes: Sequence[Any], *_: Any, **__: Any) -> bool:
    return _no_list_of(int, answer) or len(answer) != len(prefixes)


def _wrong_facts(answer: Any, *_: Any, **__: Any) -> bool:
    if not isinstance(answer, Mapping) or _any_but(str, answer):
        return True
    return any(not isinstance(value, str | int) for value in answer.values())


def _wrong_inspect(answer: Any, *_: Any, **__: Any) -> bool:
    return answer is not None and not isinstance(answer, Inspection)


def _wrong_receive(answer: Any, *_: Any, **__: Any) -> bool:
    return _no_list_of(bytes, answer) or not answer


def _no_sightings(answer: Any, *_: Any, **__: Any) -> bool:
    if _no_list_of(Sighting, answer):
        return True
    for one in answer:
        if _any_but(str, (one.id,)) or _no_list_of(str, one.endpoints) or _any_but(bytes, (one.descriptor,)):
            return True
    return False


def _wrong_look(answer: Any, *_: Any, **__: Any) -> bool:
    return not isinstance(answer, Changes) or _no_sightings(answer.came) or _no_list_of(str, answer.gone)


def _never(*_: Any, **__: Any) -> bool:
    return False


_ANYTHING = (_never, "")
"""Of a call whose answer nobody uses: it is looked at only whether it can be called and awaited."""

_TIME = (_no_whole_number, "a whole number of microseconds (S-8)")

_CONTRACTS: Mapping[type[Any], tuple[Mapping[str, Any], Mapping[str, tuple[Wrong, str]]]] = {
    Store: (
        {"is_clock_local": bool, "is_immediate": bool, "is_remote": bool, "clock_ahead_sec": (float, int)},
        {
            "get": (_wrong_get, "a list with an Entry(key, value, revision) or None for each key (S-1)"),
            "scan": (_wrong_scan, "a list with, for each range, a list of Entry(key, value, revision) (S-2)"),
            "commit": (_wrong_commit, "a list with a Committed(revision) or Conflict for each batch (S-3, S-5)"),
            "turn": (_wrong_turn, "Turned: the answers of commit, and a Taken or Conflict, or None (S-10, S-13)"),
            "count": (_wrong_count, "a list with a whole number for each prefix (S-18)"),
            "time": _TIME,
            "retention_time": _TIME,
            "facts": (_wrong_facts, "a mapping of names to text or whole numbers"),
            "inspect": (_wrong_inspect, "an Inspection or None (S-24)"),
            "advance": _ANYTHING,
            "note_format": _ANYTHING,
        },
    ),
    Channel: (
        {"frame_bytes": int, "tls_hash": bytes, "peer": str, "is_tls_terminated": bool},
        {
            "send": _ANYTHING,
            "receive": (_wrong_receive, "a list of at least one frame, each bytes (C-1, C-2)"),
            "close": _ANYTHING,
        },
    ),
    Listener: ({"address": str}, {}),
    Discovery: (
        {},
        {
            "publish": _ANYTHING,
            "withdraw": _ANYTHING,
            "snapshot": (_no_sightings, "a list of Sighting(id, endpoints, descriptor) (D-1)"),
        },
    ),
    Reader: ({}, {"look": (_wrong_look, "Changes(came, gone): a list of Sighting, a list of ids (D-7)")}),
}
"""By what is opened: the attributes that core reads, with their types, and the calls whose answers it uses."""

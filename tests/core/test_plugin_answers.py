"""A backend that answers in another shape than its contract says: its plugin is named, at the call that did it."""

# What these backends answer is wrong on purpose.
# mypy: disable-error-code="arg-type,list-item"

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from converge.builtin.memory.plugin import MEMORY
from converge.contracts.discovery import Changes, Discovery, Reader, Sighting
from converge.contracts.store import Batch, Conflict, Entry, Range, Store, Take, Taken, Turned
from converge.contracts.transport import Channel, Listener, Transport
from converge.errors import BadRecord, ConvergeError, PluginBroken
from converge.model.keys import EPOCH, HELD, READY, TASK
from converge.plugins.blame import BrokenContract, owner_of
from converge.plugins.found import Found
from converge.plugins.opened import Opened

KEY = EPOCH()
ENTRY = Entry(KEY, b"1", 7)
OWL = Found(name="owl", target="owl", distribution="owl-store", version="1.2")
WHOSE = 'plugin "owl": the store "owl"'

STORE_ANSWERS: dict[str, tuple[tuple[Any, ...], list[Any]]] = {
    "get": (
        ([KEY],),
        [
            *(None, "text", b"", 3, {}, [], (None, None), [b"1"], [(KEY, b"1", 7)], iter([None])),
            *([Entry(KEY, "1", 7)], [Entry(KEY, b"1", 7.0)], [Entry([*KEY], b"1", 7)], [Entry(KEY, None, 7)]),
        ],
    ),
    "scan": (([Range(EPOCH())],), [None, [], [None], [[None]], [[b"1"]], "t", [ENTRY], [{}], [[], []], [iter(())]]),
    "commit": (
        ([Batch()],),
        [None, [], [None], [True], [7], "t", {}, [Conflict("keys"), Conflict()], [Conflict("keys")], [(7,)]],
    ),
    "turn": (([], None), [None, [], ([], None), Turned([], Conflict()), Turned(None, None), Turned([7], None)]),
    "count": (([EPOCH()],), [None, 7, [], [7.0], ["7"], [None], {EPOCH(): 7}, [True]]),
    "time": ((), [None, 7.0, "7", [7], True]),
    "retention_time": ((), [None, 7.0, "7"]),
    "facts": ((), [None, [], "text", {7: "seven"}, {"sizes": [7]}, {"none": None}]),
    "inspect": ((), [{}, "text", []]),
}
SIGHTINGS = [
    *(None, "text", {}, {"id": "owl"}, [{"id": "owl"}], [("owl", (), b"")], [None], iter(())),
    *([Sighting(7)], [Sighting("owl", "tcp://127.0.0.1:1")], [Sighting("owl", (7,))], [Sighting("owl", (), "text")]),
]
OTHER_ANSWERS: list[tuple[type[Any], str, list[Any]]] = [
    (Channel, "receive", [None, "text", b"frame", [], ["text"], [None], iter([b"frame"]), [bytearray(b"frame")]]),
    (Listener, "accept", [None, "text", (Channel,)]),
    (Discovery, "snapshot", SIGHTINGS),
    (Reader, "look", [None, [], ([], []), Changes(None, []), *(Changes(some, []) for some in SIGHTINGS)]),
    (Reader, "look", [Changes([], None), Changes([], "text"), Changes([], [7])]),
]


def answering(answer: Any) -> Callable[..., Awaitable[Any]]:
    async def call(*_: Any, **__: Any) -> Any:
        return answer

    return call


def made(kind: type[Any], **members: Any) -> Any:
    """Return an instance of the contract's class with these members; its other abstract calls are plain functions."""
    abstract = dict.fromkeys(getattr(kind, "__abstractmethods__", ()), lambda *_, **__: None)
    address = {"address": "local:owl"} if kind is Listener else {}
    own = {"__init__": lambda _: None}
    return type("Owl", (kind,), abstract | address | own | members)()


@asynccontextmanager
async def yielding(value: Any) -> AsyncIterator[Any]:
    yield value


def looked_at(opened: Any, wanted: type[Any]) -> Opened[Any]:
    return Opened(WHOSE, lambda: yielding(opened), wanted, MEMORY if wanted is Store else None, OWL)


pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


@pytest.mark.parametrize("name", STORE_ANSWERS)
async def test_a_store_that_answers_in_another_shape_is_named_with_what_came_and_what_was_expected(name: str) -> None:
    args, answers = STORE_ANSWERS[name]
    for answer in answers:
        async with looked_at(made(Store, **{name: answering(answer)}), Store) as store:
            with pytest.raises(BrokenContract) as raised:
                await getattr(store, name)(*args)
        said = str(raised.value)
        assert said.startswith(f"{WHOSE}: its {name} answered ") and ", expected " in said, (answer, said)
        assert owner_of(raised.value) is OWL and not isinstance(raised.value, ConvergeError)


@pytest.mark.parametrize(
    "taken",
    [
        None,
        Taken(7.0, (), (), (None,), 7),
        Taken(7, (), (), (), 7),
        Taken(7, None, (), (None,), 7),
        Taken(7, ((b"1",),), (), (None,), 7),
        Taken(7, (b"1",), ((b"1",),), (None,), 7),
        Taken(7, ((b"1",),), ((),), (None,), 7),
        Taken(7, ((b"1",),), (("1",),), (None,), 7),
        Taken(7, ((b"1",),), ((b"1",),), (b"1",), 7),
        Taken(7, ((b"1",),), ((b"1",),), (None,), "7"),
    ],
)
async def test_a_take_of_another_shape_is_the_plugins(taken: Any) -> None:
    take = Take([Range(READY())], 1, HELD(), (), (), [TASK])
    async with looked_at(made(Store, turn=answering(Turned([], taken))), Store) as store:
        with pytest.raises(BrokenContract, match="its turn answered Turned"):
            await store.turn([], take)


@pytest.mark.parametrize(("kind", "name", "answers"), OTHER_ANSWERS)
async def test_what_is_no_store_is_looked_at_alike(kind: type[Any], name: str, answers: list[Any]) -> None:
    for answer in answers:
        async with looked_at(made(kind, **{name: answering(answer)}), kind) as opened:
            kind_of_error = BadRecord if kind is Channel else BrokenContract
            with pytest.raises(kind_of_error, match=f"{WHOSE}: its {name} answered .*, expected "):
                await getattr(opened, name)()


@pytest.mark.parametrize("name", ["get", "scan", "commit", "turn", "count", "time", "advance", "note_format"])
async def test_a_call_that_cannot_be_made_or_awaited_is_the_plugins(name: str) -> None:
    async def takes_nothing() -> None: ...

    for call in (lambda *_, **__: [None], takes_nothing):
        async with looked_at(made(Store, **{name: call}), Store) as store:
            with pytest.raises(BrokenContract, match=f"its {name} cannot be called or awaited as the contract says"):
                await getattr(store, name)([KEY], 7)


async def test_what_a_plugin_raises_itself_is_passed_on_as_it_is() -> None:
    async def failing(*_: Any) -> None:
        raise TypeError("its own")

    async with looked_at(made(Store, get=failing), Store) as store:
        with pytest.raises(TypeError, match="its own"):
            await store.get([KEY])


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((Store, "is_immediate", "yes"), (Store, "is_remote", None), (Store, "clock_ahead_sec", "0.5")),
        *((Channel, "frame_bytes", "64k"), (Channel, "tls_hash", "aa"), (Channel, "peer", None)),
        (Listener, "address", None),
    ],
)
async def test_an_attribute_of_another_type_is_told_when_it_is_opened(kind: type[Any], name: str, value: Any) -> None:
    with pytest.raises(PluginBroken, match=f"{WHOSE}: its {name} is .*, expected "):
        async with looked_at(made(kind, **{name: value}), kind):
            pytest.fail("it was opened")


async def test_what_a_call_gives_is_looked_at_in_its_turn() -> None:
    bad = made(Channel, receive=answering("text"))
    listener = made(Listener, accept=answering(bad))
    transport = made(Transport, connect=answering(bad), listen=lambda *_: yielding(listener))
    async with looked_at(transport, Transport) as opened:
        for channel in (await opened.connect("local:owl"), bad):
            with pytest.raises(BadRecord, match="its receive answered str text"):
                await channel.receive()
        async with opened.listen("local:owl") as bound:
            with pytest.raises(BadRecord, match="its receive answered str text"):
                await (await bound.accept()).receive()
    for wrong in (None, "text", yielding("text")):
        async with looked_at(made(Transport, listen=lambda *_, wrong=wrong: wrong), Transport) as opened:
            with pytest.raises(PluginBroken, match="its listen"):
                await opened.listen("local:owl").__aenter__()
        async with looked_at(made(Store, reopen=lambda *_, wrong=wrong: wrong), Store) as opened:
            with pytest.raises(PluginBroken, match="its reopen"):
                await opened.reopen().__aenter__()
    async with looked_at(made(Discovery, reader=lambda _: {}), Discovery) as opened:
        with pytest.raises(BrokenContract, match="its reader answered dict"):
            opened.reader()


async def test_a_watch_that_is_no_async_generator_is_told() -> None:
    for kind, name in ((Store, "watch"), (Discovery, "watch"), (Reader, "hints")):
        for call in (answering(None), lambda *_: None, lambda *_: [None]):
            async with looked_at(made(kind, **{name: call}), kind) as opened:
                with pytest.raises(BrokenContract, match=f"its {name} answered .*, expected an async generator"):
                    getattr(opened, name)(*([()] if kind is Store else []))

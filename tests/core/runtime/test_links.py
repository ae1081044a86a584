"""Links of nodes: who dials, which of two connections stays, and when one is ended."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import attrs
import pytest

from converge import Identity
from converge.builtin.local.transport import LocalTransport
from converge.contracts.transport import Channel, Listener, Transport
from converge.env import SYSTEM, Env
from converge.errors import ConnectFailed, ConnectionLost, PeerMismatch
from converge.machines.records import MESSAGE, RECEIPT, Item
from converge.machines.secure import Terms
from converge.model.descriptor import network_tag
from converge.runtime.agents.background import Background
from converge.runtime.network import dials, links
from converge.runtime.network.channel import dial
from converge.runtime.network.link import WINDOW, Link
from converge.runtime.network.links import ACCEPTED_A_TURN, Bounds, Links, Standing
from converge.testing.fixtures import wait_until


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@attrs.frozen
class Side:
    """A node's links, its key and where it listens."""

    links: Links
    key: bytes
    address: str
    got: list[Item]


def identities(count: int) -> list[Identity]:
    """Return identities in the order of their keys."""
    return sorted((Identity.generate(SYSTEM.entropy) for _ in range(count)), key=lambda one: one.public_key)


@asynccontextmanager
async def sides(
    count: int,
    env: Env = SYSTEM,
    bounds: Bounds | None = None,
    transport: Callable[[Transport], Transport] = lambda t: t,
) -> AsyncIterator[list[Side]]:
    """Nodes that listen; the first has the lowest key."""
    async with LocalTransport.open(None) as local, anyio.create_task_group() as group:
        found = []
        for identity in identities(count):
            got: list[Item] = []

            async def on_items(link: Link, items: list[Item], got: list[Item] = got) -> None:
                got.extend(items)
                link.post([(RECEIPT, body) for kind, body in items if kind == MESSAGE and body.startswith(b"!")])

            background = Background(group, env)
            terms = Terms(network=network_tag("links"), identity=identity)
            own = Links(transport(local), terms, env, background, on_items, bounds or Bounds())
            listener = await _entered(group, local)
            background.loop(own.serve, listener)
            found.append(Side(own, identity.public_key, listener.address, got))
        yield found
        group.cancel_scope.cancel()


async def _entered(group: anyio.abc.TaskGroup, transport: Transport) -> Listener:
    async def listen(*, task_status: anyio.abc.TaskStatus[Listener]) -> None:
        async with transport.listen("local:") as listener:
            task_status.started(listener)
            await anyio.sleep_forever()

    listener: Listener = await group.start(listen)
    return listener


async def test_two_nodes_that_dial_at_once_keep_one_connection() -> None:
    for _ in range(10):
        async with sides(2) as (low, high):
            async with anyio.create_task_group() as group:
                group.start_soon(low.links.to, high.key, [high.address])
                group.start_soon(high.links.to, low.key, [low.address])

            def is_settled(low: Side = low, high: Side = high) -> bool:
                here, there = low.links.open(high.key), high.links.open(low.key)
                return here is not None and there is not None and here.is_dialler != there.is_dialler

            await wait_until(is_settled, what="one connection is left")
            link = low.links.open(high.key)
            assert link is not None
            await link.send([(MESSAGE, b"over the one that stays")])
            await wait_until(lambda got=high.got: bool(got), what="it arrives")  # type: ignore[misc]  # bound now


async def test_who_has_just_proven_the_key_replaces_an_older_link_but_not_for_ever() -> None:
    async with sides(2) as (low, high), LocalTransport.open(None) as elsewhere:
        first = await low.links.to(high.key, [high.address])  # which may be dead, for all that anybody knows
        terms = high.links._terms
        kept: list[Link] = [first]
        for _ in range(links.REPLACED):
            await dial(await elsewhere.connect(low.address), terms, SYSTEM)
            await wait_until(lambda: low.links.open(high.key) not in (None, *kept), what="the newcomer is the link")
            link = low.links.open(high.key)
            assert link is not None and not link.is_dialler
            kept.append(link)
        again = await dial(await elsewhere.connect(low.address), terms, SYSTEM)
        with pytest.raises(Exception, match="two processes share a key"):
            await again.receive()
        assert low.links.open(high.key) is kept[-1]


async def test_a_silent_peer_is_pinged_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "WATCH_SEC", 0.001)
    clock = Clock()
    async with sides(2, attrs.evolve(SYSTEM, monotonic=clock)) as (low, high), anyio.create_task_group() as group:
        link = await low.links.to(high.key, [high.address])
        group.start_soon(low.links.watch)
        for _ in range(10):  # it answers pings, so it stays however long nothing else comes
            clock.now += links.PING_SEC + 1
            heard = clock.now
            await wait_until(lambda at=heard: link.heard_at >= at, what="its pong")  # type: ignore[misc]  # bound now
        other = high.links.open(low.key)
        assert other is not None
        other._on_items = _never  # it answers nothing any more: its receive loop stands still
        await link.send([(MESSAGE, b"x")])
        clock.now += links.SILENT_SEC + 1
        await wait_until(lambda: link.is_closed, what="it is given up")
        with pytest.raises(ConnectionLost):
            await link.send([(MESSAGE, b"y")])
        group.cancel_scope.cancel()


async def _never(link: Link, items: list[Item]) -> None:
    await anyio.sleep_forever()


async def test_a_day_old_connection_is_replaced_by_its_dialler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "WATCH_SEC", 0.001)
    monkeypatch.setattr(links, "SILENT_SEC", 10 * links.AGE_SEC)
    clock = Clock()
    async with sides(2, attrs.evolve(SYSTEM, monotonic=clock)) as (low, high), anyio.create_task_group() as group:
        link = await high.links.to(low.key, [low.address])
        group.start_soon(high.links.watch)
        clock.now += links.AGE_SEC * 0.89
        await wait_until(lambda: link.pinged_at == clock.now, what="it is looked at")
        assert not link.is_closed
        clock.now += links.AGE_SEC * 0.22
        await wait_until(lambda: high.links.open(low.key) not in (None, link), what="there is a new one")
        assert link.is_closed
        group.cancel_scope.cancel()


async def test_where_places_run_short_an_idle_stranger_gives_way_and_who_listens_nowhere_never_does() -> None:
    clock = Clock()
    standing = dict[bytes, Standing]()
    bounds = Bounds(greatest=2, standing=lambda key: standing.get(key, Standing.STRANGER))
    async with sides(5, attrs.evolve(SYSTEM, monotonic=clock), bounds) as (hub, one, two, three, four):
        standing[one.key] = Standing.LISTENS_NOWHERE
        for side in (one, two):
            await side.links.to(hub.key, [hub.address])
            await wait_until(lambda key=side.key: hub.links.open(key) is not None, what="it is there")  # type: ignore[misc]  # bound now
        await three.links.to(hub.key, [hub.address])
        await wait_until(lambda: three.links.open(hub.key) is None, what="nobody is idle yet, so it is refused")
        clock.now += links.IDLE_SEC
        await four.links.to(hub.key, [hub.address])
        await wait_until(lambda: hub.links.open(four.key) is not None, what="it has the stranger's place")
        assert hub.links.open(two.key) is None and hub.links.open(one.key) is not None


async def test_a_window_bounds_what_is_without_receipt_and_receipts_open_it_in_order() -> None:
    async with sides(2) as (low, high):
        link = await low.links.to(high.key, [high.address])
        for number in range(WINDOW):
            assert link.offer((MESSAGE, b"%d" % number), f"id {number}")
        assert not link.offer((MESSAGE, b"over"), "one more")
        sent: list[int] = []

        async def wait(number: int) -> None:
            await link.send([(MESSAGE, b"late %d" % number)], f"late {number}")
            sent.append(number)

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(wait, number)
                await anyio.wait_all_tasks_blocked()
            assert sent == []
            for number in range(3):
                link.settled(f"id {number}")
        await wait_until(lambda: len(high.got) == WINDOW + 3, what="all arrive")
        assert [body for _, body in high.got[WINDOW:]] == [b"late 0", b"late 1", b"late 2"]


async def test_a_peer_that_makes_a_node_owe_more_than_a_window_loses_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides(2) as (low, high):
        link = await low.links.to(high.key, [high.address])
        monkeypatch.setattr("converge.runtime.network.link.CONTROL", 10)
        link.post([(RECEIPT, b"")] * 11)
        assert link.is_closed


class Slow(Transport):
    """A transport whose first dials wait at a gate, or fail."""

    def __init__(self, inner: Transport) -> None:
        self.inner, self.gate, self.dialled = inner, anyio.Event(), list[str]()

    def listen(self, address: str) -> AbstractAsyncContextManager[Listener]:
        return self.inner.listen(address)

    async def connect(self, address: str) -> Channel:
        self.dialled.append(address)
        if address == "local:black-hole":
            await self.gate.wait()
        return await self.inner.connect(address)


async def test_a_dial_goes_on_when_its_caller_is_gone_and_all_callers_share_it() -> None:
    slow: list[Slow] = []

    def slowed(inner: Transport) -> Transport:
        slow.append(Slow(inner))
        return slow[-1]

    async with sides(2, transport=slowed) as (low, high):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(low.links.to, high.key, ["local:black-hole"])
            await wait_until(lambda: bool(slow[0].dialled), what="it is dialled")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert slow[0].dialled == ["local:black-hole"]
        # A newer descriptor's endpoint joins the race that is under way, and wins it.
        with anyio.fail_after(30):
            link = await low.links.to(high.key, ["local:black-hole", high.address])
        assert link.peer == high.key


async def test_a_dial_into_a_black_hole_ends_as_soon_as_the_peer_dials_in() -> None:
    async with sides(2, transport=Slow) as (low, high), anyio.create_task_group() as group:
        got: list[Link] = []

        async def wait() -> None:
            got.append(await low.links.to(high.key, ["local:black-hole"]))

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await high.links.to(low.key, [low.address])
        await wait_until(lambda: bool(got), what="the wait is over")
        assert not got[0].is_dialler


async def test_a_node_that_could_not_be_reached_is_dialled_again_only_after_a_rest() -> None:
    clock = Clock()
    slow: list[Slow] = []

    def slowed(inner: Transport) -> Transport:
        slow.append(Slow(inner))
        return slow[-1]

    async with sides(2, attrs.evolve(SYSTEM, monotonic=clock), transport=slowed) as (low, high):
        for _ in range(5):
            with pytest.raises(ConnectFailed):
                await low.links.to(high.key, ["local:nobody"])
        assert len(slow[0].dialled) == 1
        assert isinstance(low.links.failure(high.key), ConnectFailed)
        clock.now += dials.REST_GREATEST_SEC
        assert (await low.links.to(high.key, [high.address])).peer == high.key
        assert low.links.failure(high.key) is None


async def test_where_another_node_answered_is_told() -> None:
    async with sides(3) as (low, high, other):
        with pytest.raises(PeerMismatch, match=f"^{re.escape(other.address)}: "):
            await low.links.to(high.key, [other.address])


async def test_nodes_that_could_not_be_reached_hold_up_no_dial_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dials, "DIALS", 1)
    monkeypatch.setattr(dials, "DIALS_AGAIN", 2)
    clock = Clock()
    async with sides(2, attrs.evolve(SYSTEM, monotonic=clock), transport=Slow) as (low, high):
        nobodies = [one.public_key for one in identities(5)]
        for key in nobodies:
            with pytest.raises(ConnectFailed):
                await low.links.to(key, ["local:nobody"])
        clock.now += dials.REST_GREATEST_SEC
        async with anyio.create_task_group() as group:
            for key in nobodies:
                group.start_soon(low.links.to, key, ["local:black-hole"])
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(30):
                assert (await low.links.to(high.key, [high.address])).peer == high.key
            group.cancel_scope.cancel()


class Broken(Slow):
    """A transport with a mistake of its own."""

    async def connect(self, address: str) -> Channel:
        self.dialled.append(address)
        raise KeyError(address)


async def test_a_transport_that_fails_in_a_way_of_its_own_fails_the_dial_and_is_given_a_rest() -> None:
    clock = Clock()
    async with sides(2, attrs.evolve(SYSTEM, monotonic=clock), transport=Broken) as (low, high):
        for _ in range(2):
            with anyio.fail_after(30), pytest.raises(ConnectFailed, match="KeyError: 'local:nobody'"):
                await low.links.to(high.key, ["local:nobody"])


async def test_nothing_is_kept_of_endpoints_whose_node_has_gone() -> None:
    async with sides(3) as (own, *others):
        for other in others:
            link = await own.links.at(other.address)
            assert await own.links.at(other.address) is link
            link.close()
        await wait_until(lambda: not len(own.links), what="the links are over")
        assert not own.links._at


class Unused(Channel):
    """A channel on which nothing is done."""

    async def send(self, frames: Sequence[bytes]) -> None:
        raise NotImplementedError

    async def receive(self) -> Sequence[bytes]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class Ending(Listener):
    """Gives channels without a pause, and ends who accepts them with the last."""

    def __init__(self, last: int) -> None:
        self.last, self.given, self.scope = last, list[Channel](), anyio.CancelScope()

    async def accept(self) -> Channel:
        self.given.append(Unused())
        if len(self.given) == self.last:
            self.scope.cancel()
        return self.given[-1]


class Owner(Background):
    """Notes which channels are given to somebody."""

    def __init__(self) -> None:
        self.owned = list[object]()

    def errand(self, run: Callable[..., object], *arguments: object) -> None:
        self.owned += arguments[:1]


async def nothing(link: Link, items: list[Item]) -> None:
    """Do nothing with what comes."""


@pytest.mark.parametrize("last", range(1, 2 * ACCEPTED_A_TURN + 1))
async def test_whoever_is_ended_while_it_accepts_leaves_no_channel_that_nobody_owns(last: int) -> None:
    ending, owner = Ending(last), Owner()
    terms = Terms(network=network_tag("links"), identity=identities(1)[0])
    async with LocalTransport.open(None) as local:
        own = Links(local, terms, SYSTEM, owner, nothing)
        with anyio.fail_after(30), ending.scope:
            await own.serve(ending)
    assert owner.owned == ending.given and len(owner.owned) >= last

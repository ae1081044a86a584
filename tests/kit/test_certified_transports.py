"""Transports that are well until something befalls them, broken one way each: certification finds each, and says what
it saw. And another release that speaks otherwise.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

import converge_transport_tcp
from converge.contracts.transport import Channel
from converge.errors import ChannelError, ConnectFailed, ConnectionLost
from converge.plugins.loaded import Loaded
from converge.testing._check import card
from converge.testing._check.card import Asked, Card
from converge_transport_tcp.plugin import TCP
from converge_transport_tcp.testing import TcpBench
from converge_transport_tcp.transport import TcpTransport

EVERYTHING = os.environ.get("FULL_TESTS") == "1"
RESTART, CUT, FORK, RELEASES = (
    "test_a_restarted_peer",
    "test_connections_that_are_cut",
    "test_a_forked_child",
    "test_two_releases_side_by_side",
)
SOURCES = Path(converge_transport_tcp.__file__).parent
ENTRIES = "[converge]\ntcp = converge_transport_tcp.plugin\n"


class Forks:
    """How often this process has forked."""

    number = 0

    @classmethod
    def count(cls) -> None:
        cls.number += 1


os.register_at_fork(after_in_parent=Forks.count)


class Changed(Channel):
    """A channel of TCP, in parts that can be broken."""

    def __init__(self, inner: Channel) -> None:
        self.inner = inner

    async def send(self, frames: Any) -> None:
        await self.inner.send(frames)

    async def receive(self) -> Any:
        return await self.inner.receive()

    async def close(self) -> None:
        await self.inner.close()


class ChangedTransport(TcpTransport):
    """TCP, whose dialled channels are changed."""

    channel: ClassVar[type[Changed]] = Changed

    @classmethod
    @asynccontextmanager
    async def open(cls, options: Any) -> AsyncIterator[TcpTransport]:
        transport = cls(options)
        async with TcpTransport.open(options) as inner:
            transport._channels = inner._channels
            yield transport

    async def connect(self, address: str) -> Channel:
        return self.channel(await super().connect(address))


class ConnectsOnce(ChangedTransport):
    """It remembers an address to which it has once connected as one that is down."""

    breaks: ClassVar[str] = "C-7"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.seen: set[str] = set()

    async def connect(self, address: str) -> Channel:
        if address in self.seen:
            raise ConnectFailed(address, "it was down")
        self.seen.add(address)
        return await super().connect(address)


class LetsErrorsOut(ChangedTransport):
    """A connection that breaks raises what the system said."""

    breaks: ClassVar[str] = "C-4"

    class channel(Changed):  # it stands for the attribute
        async def receive(self) -> Any:
            try:
                return await self.inner.receive()
            except ChannelError as error:
                raise OSError("connection reset by peer") from error


class EndsWithAFork(ChangedTransport):
    """No channel works any more once this process has forked."""

    breaks: ClassVar[str] = "C-9"

    async def connect(self, address: str) -> Channel:
        if Forks.number:
            raise ConnectFailed(address, "this process has forked")
        return await super().connect(address)

    class channel(Changed):  # it stands for the attribute
        async def send(self, frames: Any) -> None:
            if Forks.number:
                raise ConnectionLost("this process has forked")
            await self.inner.send(frames)


def certified(transport: type[TcpTransport], monkeypatch: pytest.MonkeyPatch, only: str, **means: Any) -> Card:
    """Return the card of a transport that no package has."""
    monkeypatch.setattr(Forks, "number", 0)
    cls = type("Bench", (TcpBench,), {"near_sec": 30.0, **means})
    monkeypatch.setattr(card, "bench_of", lambda name, backend, url, folder: cls(backend, url, folder))
    backend = attrs.evolve(TCP, open=transport.open)
    loaded = Loaded(name="tcp", distribution="", version="", target="", backends={"transport": [backend]}, hooks=())
    return card.check(loaded, backend, "", Asked(quick=True, certify=True, only=only), on_test=lambda *_: None)


CASES = [
    (ConnectsOnce, RESTART, 0.5, "restart: nothing is echoed within 0.5 s"),
    (LetsErrorsOut, CUT, 30.0, "an error of the driver came out of a call: builtins.OSError"),
    (EndsWithAFork, FORK, 0.5, "fork: nothing is echoed within 0.5 s"),
]


@pytest.mark.parametrize(("transport", "test", "near_sec", "said"), CASES, ids=lambda one: getattr(one, "__name__", ""))
def test_a_transport_that_does_not_bear_it_is_found(
    transport: type[ChangedTransport], test: str, near_sec: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = certified(transport, monkeypatch, test, near_sec=near_sec)
    (broken,) = found.broken
    assert said in broken.report, broken.report
    assert broken.clause == getattr(transport, "breaks")  # noqa: B009  # each of them has it
    assert not found.certified


def test_a_transport_that_bears_it_is_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    found = certified(ChangedTransport, monkeypatch, "TestCertification")
    assert found.broken == ()
    assert sorted(found.certified) == ["cut", "fork", "restart"]
    assert found.not_tried == {"two releases side by side": "the bench has no `other_python`"}


def test_a_release_that_does_not_listen_is_found(
    other_release: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = other_release(SOURCES, ENTRIES, change=("import attrs\n", "raise RuntimeError('not in this year')\n"))
    (broken,) = certified(TcpTransport, monkeypatch, RELEASES, other_python=other).broken
    assert broken.clause == "C-7"
    assert "another release does not listen" in broken.said
    assert "not in this year" in broken.said


@pytest.mark.skipif(not EVERYTHING, reason="with FULL_TESTS=1 only, for its length")
def test_two_releases_that_agree_are_certified(
    other_release: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = certified(TcpTransport, monkeypatch, RELEASES, other_python=other_release(SOURCES, ENTRIES))
    assert found.broken == ()
    assert found.certified["releases"].endswith(" and 9.9.9: 10 frames and more, both ways")

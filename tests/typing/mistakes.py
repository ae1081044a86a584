"""Mistakes that a type checker finds: each line that is one says which error it is, and a checker that does not find it
says so, since an ignored error that is none is an error itself. Read by mypy and basedpyright, never run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from converge import Agent, Message, Node, Pool, Task, TaskManager
from converge.agents import Limits
from converge.contracts.discovery import Discovery, Sighting
from converge.contracts.store import Batch, Entry, Key, Range, Store
from converge.contracts.transport import Channel, Listener, Transport
from converge.model.keys import POOL

# Handlers.


class TakesNothing(Agent):
    def on_message(self) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return "a message came"


class StopsPlainly(Agent):
    def on_stop(self) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Is awaited, so it has to be a coroutine."""


async def reads_what_is_not_there(task: Task, message: Message) -> None:
    task.input  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # noqa: B018
    message.text  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # noqa: B018


# Inputs.

Task(pool_id="docs", inputs=["a", "b"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Task(pool_id="docs", input={"text": "a"})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Pool("docs")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Limits(per_sec="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def submits_inputs_alone(tasks: TaskManager, node: Node) -> None:
    await tasks.submit({"text": "a"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await node.spawn("WordCounter", pool="docs")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await tasks.complete(7, {"words": 3})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Authors' classes.


class TakesOneKey(Store):
    async def get(self, keys: Key) -> Entry | None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return None


class HasNoCommit(Store):
    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return [None for _ in keys]

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        return [[] for _ in ranges]

    async def time(self) -> int:
        return 0


HasNoCommit()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]


async def commits_text(store: Store) -> None:
    await store.commit(Batch())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await store.commit([Batch(puts=[(POOL("p"), "{}")])])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


class PublishesOne(Discovery):
    async def publish(self, sightings: Sighting) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sightings are plural."""

    async def withdraw(self, ids: Sequence[str]) -> None:
        """Nothing."""

    async def snapshot(self) -> list[Sighting]:
        return []

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        yield []


class ConnectsPlainly(Transport):
    def connect(self, address: str) -> Channel:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError

    async def listen(self, address: str) -> Listener:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError

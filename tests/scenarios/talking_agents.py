"""The agents that the processes of these tests run. No line of theirs holds an address: they know ids, and what an
agent can do.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import anyio

from converge import Agent, DiscoveryQuery, Message, Task

LONG_SEC = 600.0
"""Far longer than any test takes: what waits so long is ended from outside."""


def note(**what: Any) -> None:
    """Append a line to the ledger; one write of less than a page, so lines of several processes do not mix."""
    line = json.dumps({"pid": os.getpid(), "at": time.time(), **what}) + "\n"
    descriptor = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Talker(Agent):
    """Does what a message or a task tells it."""

    capabilities = ("talk",)
    topics = ("tests",)
    held: anyio.Event | None = None
    """What every agent of this process that was told to hold waits for."""

    async def on_task(self, task: Task) -> dict[str, int]:
        note(what="start", task=task.id, attempt=task.attempts)
        while "gate" in task.inputs and not os.path.exists(task.inputs["gate"]):  # noqa: ASYNC110, ASYNC240 - no event comes here
            await anyio.sleep(0.02)
        await anyio.sleep(LONG_SEC if task.inputs.get("long") else 0.005)
        return {"pid": os.getpid()}

    async def on_message(self, message: Message) -> Any:
        told: Mapping[str, Any] = message.payload
        return await getattr(self, f"do_{told['do']}")(message.sender, told)

    async def do_echo(self, sender: str, told: Mapping[str, Any]) -> Any:
        return {"pid": os.getpid(), "said": told.get("say"), "sender": sender}

    async def do_note(self, sender: str, told: Mapping[str, Any]) -> None:
        note(what="message", sender=sender, to=self.id, number=told["number"])

    async def do_raise(self, sender: str, told: Mapping[str, Any]) -> None:
        raise ValueError(told["say"])

    async def do_find(self, sender: str, told: Mapping[str, Any]) -> list[str]:
        found = await self.node.discovery.query(DiscoveryQuery(capabilities=["talk"]), refresh_from_store=True)
        return [one.id for one in found]

    async def do_relay(self, sender: str, told: Mapping[str, Any]) -> Any:
        receipt = await self.send(told["to"], {"do": "note", "number": told["number"]})
        answer = await self.ask(told["to"], {"do": "echo", "say": told["say"]})
        return {"level": receipt.level, "recipient": receipt.recipient, "answer": answer}

    async def do_hold(self, sender: str, told: Mapping[str, Any]) -> None:
        held = Talker.held = Talker.held or anyio.Event()
        note(what="hold", to=self.id)
        await held.wait()

    async def do_release(self, sender: str, told: Mapping[str, Any]) -> None:
        held, Talker.held = Talker.held, None
        if held is not None:
            held.set()

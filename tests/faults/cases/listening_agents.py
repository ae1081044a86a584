"""Agents with one topic: `python listening_agents.py URL PORT ADVERTISE COUNT`; ends with its standard input."""

from __future__ import annotations

import sys
from typing import Any

import anyio
from anyio import to_thread

from converge import Agent, Message, Node


class Listener(Agent):
    """Counts what it hears, and keeps each object that it was given."""

    topics = ("news",)
    heard = 0
    objects: dict[int, Any] = {}  # noqa: RUF012  # of all agents of the process

    async def on_message(self, message: Message) -> None:
        Listener.heard += 1
        Listener.objects[id(message.payload)] = message.payload


class Teller(Agent):
    """Tells what the listeners of its process have heard."""

    capabilities = ("tell",)

    async def on_message(self, message: Message) -> list[int]:
        return [Listener.heard, len(Listener.objects)]


async def main(*arguments: str) -> None:
    url, port, advertise, count = arguments
    transport = f"tcp://127.0.0.1:{port}"
    async with Node(store=url, plugins=["tcp"], transport=transport, advertise=advertise) as node:
        await node.spawn(Listener, count=int(count))
        await node.spawn(Teller)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:5])

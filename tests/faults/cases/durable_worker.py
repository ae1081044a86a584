"""A worker whose tasks record steps, wait for a signal and spawn a child; each step notes in a file that it ran."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from converge import Agent, Node, Task

STORE, NOTES = sys.argv[1:]


def ran(task: str, name: str, token: int) -> int:
    with Path(NOTES).open("a") as file:
        file.write(f"{task} {name} {token}\n")
    return token


class Worker(Agent):
    concurrency = 4

    async def on_task(self, task: Task) -> object:
        if task.type == "child":
            return await task.step("only", ran, task.id, "only", task.token)
        tokens = [await task.step(f"s{n}", ran, task.id, f"s{n}", task.token) for n in range(3)]
        child = await task.spawn(Task(pool_id="p", type="child", max_attempts=1_000))
        payload = await task.wait_for("go")
        (result,) = await task.gather(child)
        return {"tokens": tokens, "child": child.id, "result": result, "payload": payload}


async def main() -> None:
    async with Node(store=STORE, lease_sec=2.0, poll_sec=0.2) as node:
        await node.spawn(Worker, pool="p")
        await anyio.sleep_forever()


anyio.run(main)

"""Code that changes between two attempts: what the second one is given, and what runs anew."""

from __future__ import annotations

import pytest

from converge import Agent, MemoryStore, Node, Task


def made(name: str, attempt: int) -> str:
    return f"{name} of {attempt}"


class Changed(Agent):
    """Its code is a list of steps, one for each attempt; all but the last attempt fail at their end."""

    async def on_task(self, task: Task) -> list[str]:
        code = task.inputs["code"]
        found = [await task.step(name, made, name, task.attempts) for name in code[task.attempts - 1]]
        if task.attempts < len(code):
            raise ConnectionError("it is deployed anew")
        return found


@pytest.mark.parametrize(
    ("before", "after", "given"),
    [
        ("a b", "a x b", "a of 1, x of 2, b of 1"),
        ("a b c", "a c", "a of 1, c of 1"),
        ("a b c", "c b a", "c of 1, b of 1, a of 1"),
        ("a b", "a b:2", "a of 1, b:2 of 2"),
        ("a a", "a a a", "a of 1, a of 1, a of 2"),
    ],
    ids=["added", "removed", "reordered", "renamed", "repeated"],
)
async def test_records_are_found_by_name(before: str, after: str, given: str) -> None:
    async with Node(store=MemoryStore()) as node:
        await node.spawn(Changed, pool="p")
        inputs = {"code": [before.split(), after.split()]}
        id_ = await node.tasks.submit(Task(pool_id="p", retry_delay_sec=0.0, inputs=inputs))
        task = await node.tasks.result(id_, timeout=30)
        assert task.result == given.split(", "), task.error

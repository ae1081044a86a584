"""The agent of `test_namespaces.py`: its tasks are to send messages, since the test itself is in neither namespace."""

from __future__ import annotations

from collections import Counter
from typing import Any

from converge import Agent, Message, Task
from converge.errors import MessageError


class Crosser(Agent):
    """Sends as many messages as its task says, and returns what came of them."""

    capabilities = ("cross",)

    async def on_task(self, task: Task) -> dict[str, int]:
        outcomes: Counter[str] = Counter()
        for number in range(task.inputs["count"]):
            try:
                answer = await self.ask(task.inputs["to"], {"n": number}, timeout=task.inputs["timeout"])
                outcomes["answer" if answer == {"n": number} else "wrong"] += 1
            except MessageError as error:
                outcomes[type(error).__name__] += 1
        return dict(outcomes)

    async def on_message(self, message: Message) -> Any:
        return message.payload

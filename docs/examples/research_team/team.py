"""Lead, workers and critic of a research team; `MODEL_URL` says where the model is.

A job is one task of pool `team`: {"question": TEXT, "tokens": N}.
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.request import Request, urlopen

import anyio

from converge import Agent, DiscoveryQuery, Message, Task
from converge.errors import CalledOff, NoRetry

ROUNDS = 3
"""How often the critic may send workers out again."""

TURNS = 8
"""Answers of the model that one worker may ask for."""

APPROVAL_SEC = 7 * 86_400.0


def ask(role: str, about: Any) -> Any:
    """Ask the model, a tool or the press over HTTP."""
    request = Request(f"{os.environ['MODEL_URL']}/{role}", json.dumps(about).encode())
    with urlopen(request, timeout=30) as answer:
        return json.load(answer)


class Budget:
    """The tokens of a job. What was spent is known from the records of steps, so a later attempt counts the same."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.left = tokens, tokens

    def spend(self, tokens: int) -> None:
        """Take tokens off; a job that has no more fails for good, and its workers are cancelled."""
        self.left -= tokens
        if self.left < 0:
            raise NoRetry(f"its budget of {self.tokens:,} tokens is used up")


class Lead(Agent):
    """Plans, hands topics to workers, has their notes reviewed, waits for a person, publishes."""

    concurrency = 8

    async def on_task(self, task: Task) -> dict[str, Any]:
        key = f"{task.effect_key}/publish"
        try:
            return await self.research(task, Budget(task.inputs["tokens"]), key)
        except CalledOff:  # the job is cancelled with grace: what was printed is withdrawn
            await task.step("withdraw", ask, "withdraw", key)
            raise

    async def research(self, task: Task, budget: Budget, key: str) -> dict[str, Any]:
        """Work in rounds until the critic is content."""
        plan = await task.step("plan", ask, "planner", task.inputs["question"])
        budget.spend(plan["tokens"])
        missing, notes = plan["topics"], dict[str, str]()
        for number in range(1, ROUNDS + 1):
            await task.progress(number, of=ROUNDS, text=f"studying {', '.join(missing)}")
            share = budget.left // max(1, len(missing))
            children = [
                await task.spawn(
                    Task(
                        pool_id="workers",
                        inputs={"topic": topic if number == 1 else f"more on {topic}", "tokens": share},
                    ),
                    f"{topic}:{number}",
                )
                for topic in missing
            ]
            for topic, note in zip(missing, await task.gather(*children), strict=True):
                budget.spend(note["tokens"])
                notes[topic] = note["text"]
            review = await task.step(f"review:{number}", self.review, notes, retries=9)
            budget.spend(review["tokens"])
            missing = review["missing"]
            if not missing:
                break
        await task.emit(notes)
        verdict = await task.wait_for("approval", timeout=APPROVAL_SEC)
        if verdict["ok"]:
            await task.step("publish", ask, "publish", {"key": key, "text": notes})
        return {"notes": notes, "is_published": verdict["ok"], "tokens": budget.tokens - budget.left}

    async def review(self, notes: dict[str, str]) -> Any:
        """Ask a critic, in whichever process it is."""
        critics = await self.node.discovery.query(DiscoveryQuery(capabilities=("review",)), refresh_from_store=True)
        if not critics:
            raise LookupError("no critic is there")
        return await self.ask(critics[0].id, notes, timeout=20)


class Worker(Agent):
    """Studies one topic: the model says which tool it needs, until it has written its note."""

    concurrency = 4

    async def on_task(self, task: Task) -> dict[str, Any]:
        spent = 0
        messages = [{"role": "user", "text": task.inputs["topic"]}]
        for turn in range(TURNS):
            if spent >= task.inputs["tokens"]:
                break
            answer = await task.step(f"model:{turn}", ask, "worker", messages)
            spent += answer["tokens"]
            if "tool" not in answer:
                return {"text": answer["text"], "tokens": spent}
            found = await task.step(f"tool:{answer['id']}", ask, answer["tool"], *answer["args"], retries=2)
            await task.emit(found["text"])
            messages.append({"role": "tool", "text": found["text"]})
        return {"text": f"no note on {task.inputs['topic']}: its tokens are used up", "tokens": spent}


class Critic(Agent):
    """Says of which topics the notes are too thin."""

    capabilities = ("review",)

    async def on_message(self, message: Message) -> Any:
        return await anyio.to_thread.run_sync(ask, "critic", message.payload)
